// The functions of mlx-c 0.7.0 (`mlx/c/*.h`) that `src/quant/mlx/live.rs` calls, named and typed as bindgen names and
// types them. On Linux this stands in for what the build script of `mlx-sys` would generate.

use std::os::raw::{c_char, c_int, c_uint, c_void};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mlx_string_ {
    pub ctx: *mut c_void,
}
pub type mlx_string = mlx_string_;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mlx_array_ {
    pub ctx: *mut c_void,
}
pub type mlx_array = mlx_array_;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mlx_vector_array_ {
    pub ctx: *mut c_void,
}
pub type mlx_vector_array = mlx_vector_array_;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mlx_stream_ {
    pub ctx: *mut c_void,
}
pub type mlx_stream = mlx_stream_;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mlx_optional_int_ {
    pub value: c_int,
    pub has_value: bool,
}
pub type mlx_optional_int = mlx_optional_int_;

pub type mlx_dtype = c_uint;
pub const mlx_dtype__MLX_UINT8: mlx_dtype = 1;
pub const mlx_dtype__MLX_FLOAT16: mlx_dtype = 9;
pub const mlx_dtype__MLX_FLOAT32: mlx_dtype = 10;
pub const mlx_dtype__MLX_BFLOAT16: mlx_dtype = 12;

pub type mlx_error_handler_func = Option<unsafe extern "C" fn(msg: *const c_char, data: *mut c_void)>;

extern "C" {
    pub fn mlx_set_error_handler(
        handler: mlx_error_handler_func,
        data: *mut c_void,
        dtor: Option<unsafe extern "C" fn(arg1: *mut c_void)>,
    );

    pub fn mlx_version(str_: *mut mlx_string) -> c_int;
    pub fn mlx_string_new() -> mlx_string;
    pub fn mlx_string_data(str_: mlx_string) -> *const c_char;
    pub fn mlx_string_free(str_: mlx_string) -> c_int;

    pub fn mlx_default_cpu_stream_new() -> mlx_stream;
    pub fn mlx_stream_free(stream: mlx_stream) -> c_int;

    pub fn mlx_array_new() -> mlx_array;
    pub fn mlx_array_new_data(data: *const c_void, shape: *const c_int, dim: c_int, dtype: mlx_dtype) -> mlx_array;
    pub fn mlx_array_free(arr: mlx_array) -> c_int;
    pub fn mlx_array_eval(arr: mlx_array) -> c_int;
    pub fn mlx_array_nbytes(arr: mlx_array) -> usize;
    pub fn mlx_array_data_uint8(arr: mlx_array) -> *const u8;

    pub fn mlx_vector_array_new() -> mlx_vector_array;
    pub fn mlx_vector_array_free(vec: mlx_vector_array) -> c_int;
    pub fn mlx_vector_array_size(vec: mlx_vector_array) -> usize;
    pub fn mlx_vector_array_get(res: *mut mlx_array, vec: mlx_vector_array, idx: usize) -> c_int;

    pub fn mlx_view(res: *mut mlx_array, a: mlx_array, dtype: mlx_dtype, s: mlx_stream) -> c_int;
    pub fn mlx_contiguous(res: *mut mlx_array, a: mlx_array, allow_col_major: bool, s: mlx_stream) -> c_int;
    pub fn mlx_quantize(
        res: *mut mlx_vector_array,
        w: mlx_array,
        group_size: mlx_optional_int,
        bits: mlx_optional_int,
        mode: *const c_char,
        global_scale: mlx_array,
        s: mlx_stream,
    ) -> c_int;
}
