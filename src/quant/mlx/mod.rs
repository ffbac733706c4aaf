//! MLX itself, to hold the kernels of this room against: the same rows in, the same parts out. It is there when kiln
//! is built with the feature `mlx`; without it [`Mlx::start`] says so. It never writes what is stored.

#[cfg(feature = "mlx")]
mod live;
#[cfg(feature = "mlx")]
pub use live::Mlx;

#[cfg(not(feature = "mlx"))]
pub use absent::Mlx;

/// The version of MLX whose C interface kiln is built for. Its library fits no other.
pub const MLX_VERSION: &str = "0.32.2";

#[cfg(not(feature = "mlx"))]
mod absent {
    use crate::error::{Error, ErrorKind, Result};
    use crate::quant::{Float, Scheme};

    /// MLX, which this kiln was built without: there is no value of it.
    #[derive(Debug)]
    pub enum Mlx {}

    impl Mlx {
        /// Says that there is no MLX.
        ///
        /// # Errors
        /// [`ErrorKind::CouldNotCheck`], always.
        pub fn start() -> Result<Self> {
            Err(Error::new(ErrorKind::CouldNotCheck, "This kiln was built without MLX")
                .hint("build it with `--features mlx`, as CONTRIBUTING.md shows"))
        }

        /// Quantizes rows, where there is an MLX.
        ///
        /// # Errors
        /// None: there is no `self` to call it on.
        pub fn quantize(&self, _: Scheme, _: Float, _: usize, _: &[u8]) -> Result<[Vec<u8>; 3]> {
            match *self {}
        }
    }
}
