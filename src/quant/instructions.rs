//! The instruction sets a kernel is compiled for.
//!
//! A kernel is written once, over [`Lanes`]; there is a copy of it for each set. With AVX-512 the registers stay those of
//! AVX2, of which there are then twice as many, with more instructions for them. Rust neither contracts nor reorders
//! float operations, so every copy gives the same bytes.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "a function that uses optional instructions is unsafe to call")
)]

use std::fmt;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
use super::lanes::{Lanes, Plain};

/// What a set by default is for the whole process, where somebody decided.
static CHOSEN: OnceLock<Instructions> = OnceLock::new();

/// A set of instructions that this processor has; by default the widest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instructions(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Set {
    /// The narrowest first.
    const ALL: &[Self] = &[
        Self::Portable,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
    ];

    fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
        }
    }
}

/// A computation that [`Instructions::run`] can run on any set.
pub(super) trait Kernel {
    type Output;

    /// Everything this calls down to the innermost loop must be `#[inline(always)]`: code that is
    /// not inlined into the copy for a set is not compiled for it.
    fn run<L: Lanes>(self) -> Self::Output;
}

impl Instructions {
    /// What every processor of the target has.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// All sets that this processor has, the narrowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Set::ALL.iter().filter(|set| set.is_available()).map(|&set| Self(set))
    }

    /// Makes these the default for the whole process. No output byte depends on it, and a test shows that by choosing
    /// each in turn. Whoever chooses first decides.
    pub fn choose(self) {
        let _ = CHOSEN.set(self);
    }

    /// Runs `kernel` on these instructions.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Set::Portable => kernel.run::<Plain>(),
            // SAFETY: only `available` makes a value of this set, after it found AVX2 and F16C.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2(kernel) },
            // SAFETY: only `available` makes a value of this set, after it found those and four parts of AVX-512.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { avx512(kernel) },
        }
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
        })
    }
}

impl Default for Instructions {
    fn default() -> Self {
        CHOSEN.get().copied().unwrap_or_else(|| Self::available().last().unwrap_or(Self::PORTABLE))
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}
