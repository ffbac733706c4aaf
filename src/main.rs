//! The `kiln` program: everything it does is in the library's `cli` room.

fn main() -> std::process::ExitCode {
    kiln::cli::main()
}
