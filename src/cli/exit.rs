//! How a run ended, as the exit code says it. The codes are a promise to scripts: they are written down
//! here, once, and `docs/cli.md` and `kiln --help` say the same.

use std::process::ExitCode;

use crate::error::ErrorKind;
use crate::ops::verify::Outcome;

/// The end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// It did what was asked.
    Done = 0,
    /// A bug, or a condition nobody foresaw.
    Unexpected = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Stored or received bytes are not what their digest or their lock says.
    Corrupt = 3,
    /// A re-creation gave other bytes.
    NotReproduced = 4,
    /// The question could not be answered.
    CouldNotCheck = 5,
    /// The checkpoint cannot be imported, or the named model is not there.
    Input = 6,
    /// The registry wants other credentials.
    Unauthorized = 7,
    /// The registry or the network failed.
    Registry = 8,
    /// The store is full, locked, unwritable or of another version.
    Store = 9,
    /// A signature that was asked for is missing, wrong, or of somebody who is not trusted.
    NotTrusted = 10,
    /// It was interrupted; 128 and the number of SIGINT, as shells have it.
    Interrupted = 130,
    /// It was terminated; 128 and the number of SIGTERM.
    Terminated = 143,
}

/// The codes as `kiln --help` shows them.
pub(super) const TABLE: &str = "\
Exit codes:
    0  done
    1  unexpected: a bug
    2  usage: the command line is wrong
    3  corrupt: stored or received bytes are not what they should be
    4  not reproduced: creating the model again gave other bytes
    5  could not check: the source is gone, or the model has no lock
    6  bad input: the checkpoint cannot be imported, or there is no such model
    7  not authorized
    8  registry or network
    9  store: full, locked or unwritable
   10  not trusted: a signature is missing, wrong, or of nobody who is trusted
  130  interrupted";

impl Exit {
    /// The number.
    pub(super) fn code(self) -> u8 {
        self as u8
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Unexpected => Self::Unexpected,
            ErrorKind::Usage => Self::Usage,
            ErrorKind::Corrupt => Self::Corrupt,
            ErrorKind::NotReproduced => Self::NotReproduced,
            ErrorKind::CouldNotCheck => Self::CouldNotCheck,
            // A name that names nothing is the caller's mistake, whether the store or a registry says so.
            ErrorKind::Input | ErrorKind::NotFound => Self::Input,
            ErrorKind::Unauthorized => Self::Unauthorized,
            ErrorKind::Registry => Self::Registry,
            ErrorKind::Store => Self::Store,
            ErrorKind::NotTrusted => Self::NotTrusted,
        }
    }
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Ok => Self::Done,
            Outcome::CouldNotCheck => Self::CouldNotCheck,
            Outcome::NotReproduced => Self::NotReproduced,
            Outcome::NotTrusted => Self::NotTrusted,
            Outcome::Corrupt => Self::Corrupt,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_its_code() {
        for (kind, code) in [
            (ErrorKind::Unexpected, 1),
            (ErrorKind::Usage, 2),
            (ErrorKind::Corrupt, 3),
            (ErrorKind::NotReproduced, 4),
            (ErrorKind::CouldNotCheck, 5),
            (ErrorKind::Input, 6),
            (ErrorKind::NotFound, 6),
            (ErrorKind::Unauthorized, 7),
            (ErrorKind::Registry, 8),
            (ErrorKind::Store, 9),
            (ErrorKind::NotTrusted, 10),
        ] {
            assert_eq!(Exit::from(kind).code(), code, "{kind:?}");
        }
    }

    #[test]
    fn every_verdict_has_its_code() {
        for (outcome, code) in [
            (Outcome::Ok, 0),
            (Outcome::Corrupt, 3),
            (Outcome::NotReproduced, 4),
            (Outcome::CouldNotCheck, 5),
            (Outcome::NotTrusted, 10),
        ] {
            assert_eq!(Exit::from(outcome).code(), code, "{outcome:?}");
        }
    }

    #[test]
    fn the_help_names_every_code_once() {
        let listed: Vec<u8> =
            TABLE.lines().skip(1).map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
        assert_eq!(listed, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 130]);
    }
}
