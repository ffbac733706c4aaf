//! Finding a recipe: one that is part of kiln, or a file.

use std::path::Path;

use super::text;
use crate::error::Result;
use crate::plan::Recipe;

/// The recipe of this name, else the one in the file at this path. A file that is named like a recipe of
/// kiln's is found as `./NAME`.
///
/// # Errors
/// [`crate::ErrorKind::Input`] for a file that cannot be read, is longer than 1 MiB, or is no recipe.
pub fn find(name: &Path) -> Result<Recipe> {
    if let Some(recipe) = name.to_str().map(Recipe::built_in).transpose()?.flatten() {
        return Ok(recipe);
    }
    let names = Recipe::BUILT_IN.join(", ");
    let text = text::read("recipe", name).map_err(|error| error.hint(format!("use a TOML file, or one of {names}")))?;
    Recipe::parse(&name.display().to_string(), &text)
}
