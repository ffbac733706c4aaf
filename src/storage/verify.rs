//! The one check that bytes are what a descriptor promises.

use std::io::{self, Read};

use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Hasher};

/// Checks bytes against a descriptor while they pass: no more than `size` of them, and at the end
/// exactly `size` with the right digest. Nothing may be kept before [`Verifier::finish`] said yes.
/// A clone goes on from the same bytes.
#[derive(Clone, Debug)]
pub struct Verifier {
    expected: Descriptor,
    /// None when only the size is checked.
    hasher: Option<Hasher>,
    seen: u64,
}

impl Verifier {
    /// A check against `expected`.
    pub fn new(expected: &Descriptor) -> Self {
        Self { expected: expected.clone(), hasher: Some(Hasher::new(expected.digest.algorithm())), seen: 0 }
    }

    /// A check of the size alone, of bytes that somebody else holds against the digest of `expected`.
    pub fn of_size(expected: &Descriptor) -> Self {
        Self { hasher: None, ..Self::new(expected) }
    }

    /// Checks `bytes`, which are all there are.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when they are not those of `expected`.
    pub fn check(expected: &Descriptor, bytes: &[u8]) -> Result<()> {
        let mut verifier = Self::new(expected);
        verifier.update(bytes)?;
        verifier.finish()
    }

    /// Takes in more bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] as soon as there are more bytes than promised.
    pub fn update(&mut self, bytes: &[u8]) -> Result<()> {
        self.seen += bytes.len() as u64;
        if self.seen > self.expected.size {
            return Err(self.corrupt(format!("has more than its {} bytes", self.expected.size)));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        Ok(())
    }

    /// What is promised.
    pub fn expected(&self) -> &Descriptor {
        &self.expected
    }

    /// How many bytes passed.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The same check, before any bytes.
    pub fn restarted(&self) -> Self {
        if self.is_of_digest() { Self::new(&self.expected) } else { Self::of_size(&self.expected) }
    }

    /// Whether it holds the bytes against the digest.
    pub fn is_of_digest(&self) -> bool {
        self.hasher.is_some()
    }

    /// Whether `other` has seen the same bytes.
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.seen == other.seen && self.digest() == other.digest()
    }

    /// The verdict over all bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when bytes are missing or the digest differs.
    pub fn finish(self) -> Result<()> {
        if self.seen != self.expected.size {
            return Err(self.corrupt(format!("ends after {} of its {} bytes", self.seen, self.expected.size)));
        }
        match self.digest().filter(|actual| *actual != self.expected.digest) {
            Some(actual) => Err(self.corrupt(format!("has other bytes, of digest `{actual}`"))),
            None => Ok(()),
        }
    }

    fn digest(&self) -> Option<Digest> {
        self.hasher.clone().map(Hasher::finish)
    }

    fn corrupt(&self, what: String) -> Error {
        Error::new(ErrorKind::Corrupt, format!("The content of `{}` {what}", self.expected.digest))
    }
}

/// A reader that gives an error instead of its end when the bytes were not those of a descriptor.
#[derive(Debug)]
pub struct VerifyReader<R> {
    inner: R,
    verifier: Option<Verifier>,
}

impl<R: Read> VerifyReader<R> {
    /// Reads `inner`, which must hold what `expected` promises.
    pub fn new(inner: R, expected: &Descriptor) -> Self {
        Self { inner, verifier: Some(Verifier::new(expected)) }
    }
}

impl<R: Read> Read for VerifyReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let Some(verifier) = &mut self.verifier {
            if read > 0 {
                verifier.update(&buffer[..read]).map_err(io::Error::other)?;
            } else if !buffer.is_empty()
                && let Some(verifier) = self.verifier.take()
            {
                verifier.finish().map_err(io::Error::other)?;
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    fn read(bytes: &[u8], expected: &Descriptor) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        VerifyReader::new(bytes, expected).read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn only_the_promised_bytes_pass() {
        let expected = Descriptor::of(MediaType::KILN_FILE, b"weights");
        assert_eq!(read(b"weights", &expected).unwrap(), b"weights");
        for (bytes, says) in [
            (&b"weight"[..], "ends after 6 of its 7 bytes"),
            (b"weightsX", "has more than its 7 bytes"),
            (b"weightz", "has other bytes"),
        ] {
            let error = read(bytes, &expected).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
