//! The runtime that layers are named for.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result, quoted};

/// Whose names, shapes and choice of schemes a plan follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Ollama's: one blob per tensor or expert group, `W`, `W.bias`, `W.scale`.
    #[default]
    Ollama,
    /// Those of `mlx_lm.convert`: one blob per decoder layer, `P.weight`, `P.biases`, `P.scales`.
    Mlx,
    /// The files of the checkpoint as they are, one layer each.
    Hf,
}

impl Profile {
    /// Every profile, the default first.
    pub const ALL: [Self; 3] = [Self::Ollama, Self::Mlx, Self::Hf];

    /// The name on the command line and in the lock.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ollama => "ollama",
            Self::Mlx => "mlx",
            Self::Hf => "hf",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == text).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("Unknown profile {}", quoted(text)))
                .hint("use `ollama`, `mlx` or `hf`")
        })
    }
}
