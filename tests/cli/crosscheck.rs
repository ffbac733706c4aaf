use insta::assert_snapshot;

use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("crosscheck"), @r"
    Compare a stored model with what MLX makes of its source

    Usage: kiln crosscheck [OPTIONS] <NAME>

    Arguments:
      <NAME>  The model's name in the store

    Options:
          --source <SOURCE>  The source, as in `kiln create` [default: what the model was created from]
          --draft <DIR>      The draft's checkpoint [default: where the model was created from]
      -h, --help             Print help (see more with '--help')

    Global options: …

    Examples:
      kiln crosscheck llama:int4
      kiln crosscheck llama:int4 --source ./Llama-3.1-8B

    Exit codes:
      0  every byte is the one that MLX gives
      3  corrupt
      4  not reproduced
      5  could not check: kiln was built without MLX, say
    ");
}

/// With the feature, `tests/crosscheck.rs` runs it.
#[cfg(not(feature = "mlx"))]
#[test]
fn a_kiln_without_mlx_says_so() {
    assert_snapshot!(crate::place::Place::with_model().kiln("crosscheck demo:int4"), @r"
    exit: 5
    --- stdout ---
    --- stderr ---
    error: This kiln was built without MLX

    hint: build it with `--features mlx`, as CONTRIBUTING.md shows
    ");
}
