//! Finding a recipe: one that is part of kiln, or a file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::plan::Recipe;

/// The longest file that is read as a recipe, in bytes.
const LONGEST: u64 = 1 << 20;

/// The recipe of this name, else the one in the file at this path. A file that is named like a recipe of
/// kiln's is found as `./NAME`.
///
/// # Errors
/// [`ErrorKind::Input`] for a file that cannot be read, is longer than 1 MiB, or is no recipe.
pub fn find(name: &Path) -> Result<Recipe> {
    if let Some(recipe) = name.to_str().map(Recipe::built_in).transpose()?.flatten() {
        return Ok(recipe);
    }
    let unreadable = |cause| {
        let names = Recipe::BUILT_IN.join(", ");
        Error::io(ErrorKind::Input, "read the recipe", name, cause).hint(format!("use a TOML file, or one of {names}"))
    };
    let mut text = String::new();
    let file = File::open(name).map_err(unreadable)?;
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > LONGEST {
        return Err(Error::input(format!("The recipe `{}` is longer than 1 MiB", name.display())));
    }
    Recipe::parse(&name.display().to_string(), &text)
}
