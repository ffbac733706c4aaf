//! MLX through its C interface, and the only `unsafe` outside of the SIMD. Every object of MLX is owned by one value
//! here, which frees it, and no pointer into MLX outlives the function that asked for it.
#![expect(unsafe_code, reason = "the C interface of MLX")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mlx_sys as c;

use super::MLX_VERSION;
use crate::error::{Error, ErrorKind, Result};
use crate::quant::{Float, Scheme};

/// Whoever holds this may call MLX, which does not promise that two threads may.
static TURN: Mutex<()> = Mutex::new(());

/// What MLX said last about a call that failed.
static REFUSAL: Mutex<String> = Mutex::new(String::new());

/// MLX, ready to quantize on the CPU. There is one at a time in a process, and it stays on its thread.
#[derive(Debug)]
pub struct Mlx {
    stream: Stream,
    _turn: MutexGuard<'static, ()>,
}

impl Mlx {
    /// Starts MLX on the CPU; the GPU need not give the same bytes. Waits until the last one is dropped, which a thread
    /// that has it itself must have done before.
    ///
    /// # Errors
    /// [`ErrorKind::CouldNotCheck`] when it is of another version than [`MLX_VERSION`], or does not start.
    pub fn start() -> Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `keep` has the type that is asked for, and is there for as long as the process is. Before any other
        // call: the handler that MLX comes with ends the process.
        unsafe { c::mlx_set_error_handler(Some(keep), ptr::null_mut(), None) };
        let version = version()?;
        if version != MLX_VERSION {
            return Err(Error::new(
                ErrorKind::CouldNotCheck,
                format!("MLX is there in version `{version}`, and this kiln is built for `{MLX_VERSION}`"),
            )
            .hint("put the library of that version where the system looks first"));
        }
        Ok(Self { stream: Stream::cpu()?, _turn: turn })
    }

    /// The codes, scales and biases that `mx.quantize` gives for `input`, rows of `columns` elements of type `float`.
    ///
    /// # Errors
    /// [`ErrorKind::CouldNotCheck`] when these are not whole rows, when MLX has no such scheme, refuses the shape, or
    /// gives parts of other lengths than the scheme has.
    pub fn quantize(&self, scheme: Scheme, float: Float, columns: usize, input: &[u8]) -> Result<[Vec<u8>; 3]> {
        let weight = self.matrix(float, columns, input)?;
        let mode = CString::new(scheme.mode()).unwrap_or_default();
        let some = |value: u32| c::mlx_optional_int { value: value as c_int, has_value: true };
        let no_global_scale = c::mlx_array { ctx: ptr::null_mut() };
        let mut parts = Arrays::new();
        // SAFETY: all handles are alive, `mode` ends with a zero, and a null array stands for "none" here.
        accepted(unsafe {
            c::mlx_quantize(
                &mut parts.0,
                weight.0,
                some(scheme.group_size() as u32),
                some(scheme.bits()),
                mode.as_ptr(),
                no_global_scale,
                self.stream.0,
            )
        })?;
        let elements = input.len() / float.size();
        let lengths =
            [scheme.packed_len(elements), scheme.scales_len(elements, float), scheme.biases_len(elements, float)];
        let mut read = (0..parts.len()).map(|index| self.read(&parts.get(index)?)).collect::<Result<Vec<_>>>()?;
        // Only the affine schemes have a third part.
        read.resize(3, Vec::new());
        match <[Vec<u8>; 3]>::try_from(read) {
            Ok(parts) if parts.each_ref().map(Vec::len) == lengths => Ok(parts),
            _ => Err(refused(format!("MLX gave other parts than `{scheme}` has"))),
        }
    }

    /// A matrix of MLX's own with these rows. They are handed over as bytes, which need no alignment.
    fn matrix(&self, float: Float, columns: usize, input: &[u8]) -> Result<Array> {
        let row = columns * float.size();
        if row == 0 || !input.len().is_multiple_of(row) {
            return Err(refused(format!("{} bytes are not rows of {columns} elements", input.len())));
        }
        let shape = [input.len() / row, row].map(c_int::try_from);
        let [Ok(rows), Ok(row)] = shape else { return Err(refused("MLX has no matrix of this size".to_owned())) };
        // SAFETY: the shape is two numbers, and their product the length of `input`, which is copied.
        let bytes = Array(unsafe {
            c::mlx_array_new_data(input.as_ptr().cast(), [rows, row].as_ptr(), 2, c::mlx_dtype__MLX_UINT8)
        });
        let dtype = match float {
            Float::Bf16 => c::mlx_dtype__MLX_BFLOAT16,
            Float::F16 => c::mlx_dtype__MLX_FLOAT16,
            Float::F32 => c::mlx_dtype__MLX_FLOAT32,
        };
        let mut matrix = Array::new();
        // SAFETY: all handles are alive; one that is null, because MLX had no memory, is refused.
        accepted(unsafe { c::mlx_view(&mut matrix.0, bytes.0, dtype, self.stream.0) })?;
        Ok(matrix)
    }

    /// Computes `array` and copies its bytes.
    fn read(&self, array: &Array) -> Result<Vec<u8>> {
        let mut rows = Array::new();
        // SAFETY: all handles are alive.
        accepted(unsafe { c::mlx_contiguous(&mut rows.0, array.0, false, self.stream.0) })?;
        // SAFETY: the handle is alive.
        accepted(unsafe { c::mlx_array_eval(rows.0) })?;
        // SAFETY: the handle is alive, and what it stands for was computed.
        let (length, data) = unsafe { (c::mlx_array_nbytes(rows.0), c::mlx_array_data_uint8(rows.0)) };
        if data.is_null() {
            return Err(refused("MLX gave no bytes".to_owned()));
        }
        // SAFETY: `rows` is alive and was computed in row order, so that its `length` bytes lie at `data`; nobody
        // writes to them.
        Ok(unsafe { std::slice::from_raw_parts(data, length) }.to_vec())
    }
}

/// Keeps what MLX says of a call that fails.
unsafe extern "C" fn keep(message: *const c_char, _: *mut c_void) {
    // SAFETY: MLX hands over a text that ends with a zero and stays until this returns.
    let message = unsafe { CStr::from_ptr(message) };
    *REFUSAL.lock().unwrap_or_else(PoisonError::into_inner) = message.to_string_lossy().into_owned();
}

/// Whether a call did what it should: MLX gives 0 then, and otherwise has called [`keep`].
fn accepted(status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    let said = std::mem::take(&mut *REFUSAL.lock().unwrap_or_else(PoisonError::into_inner));
    Err(refused("MLX refused to quantize".to_owned()).caused_by(said))
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::CouldNotCheck, message)
}

/// The version of the library that is linked.
fn version() -> Result<String> {
    // SAFETY: the string is made here, alive while its text is read, which ends with a zero, and freed once.
    unsafe {
        let mut string = c::mlx_string_new();
        let status = accepted(c::mlx_version(&mut string));
        let text = status.map(|()| CStr::from_ptr(c::mlx_string_data(string)).to_string_lossy().into_owned());
        c::mlx_string_free(string);
        text
    }
}

/// A stream of work on the CPU.
#[derive(Debug)]
struct Stream(c::mlx_stream);

impl Stream {
    fn cpu() -> Result<Self> {
        // SAFETY: it takes nothing.
        let stream = Self(unsafe { c::mlx_default_cpu_stream_new() });
        accepted(c_int::from(stream.0.ctx.is_null())).map(|()| stream)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: nobody else has this handle; one that is null is let through.
        unsafe { c::mlx_stream_free(self.0) };
    }
}

/// An array, or the place of one that is to come.
struct Array(c::mlx_array);

impl Array {
    fn new() -> Self {
        // SAFETY: it takes nothing.
        Self(unsafe { c::mlx_array_new() })
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        // SAFETY: nobody else has this handle; one that is null is let through.
        unsafe { c::mlx_array_free(self.0) };
    }
}

/// Several arrays.
struct Arrays(c::mlx_vector_array);

impl Arrays {
    fn new() -> Self {
        // SAFETY: it takes nothing.
        Self(unsafe { c::mlx_vector_array_new() })
    }

    fn len(&self) -> usize {
        // SAFETY: the handle is alive.
        unsafe { c::mlx_vector_array_size(self.0) }
    }

    /// The array at `index`; it is MLX that counts its owners.
    fn get(&self, index: usize) -> Result<Array> {
        let mut array = Array::new();
        // SAFETY: both handles are alive; MLX checks the index.
        accepted(unsafe { c::mlx_vector_array_get(&mut array.0, self.0, index) })?;
        Ok(array)
    }
}

impl Drop for Arrays {
    fn drop(&mut self) {
        // SAFETY: nobody else has this handle; one that is null is let through.
        unsafe { c::mlx_vector_array_free(self.0) };
    }
}
