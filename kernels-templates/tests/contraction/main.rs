//! Every contraction variant against the ops' reference evaluation.
//!
//! `small_*` also run under oclgrind, which reports memory errors and races. The tests load the
//! OpenCL library at run time, so it comes as a driver, not through its wrapper:
//! ```sh
//! echo /usr/lib/oclgrind/liboclgrind-rt-icd.so > /tmp/oclgrind.icd
//! OCL_ICD_VENDORS=/tmp/oclgrind.icd OCLGRIND_DATA_RACES=1 OCLGRIND_STOP_ERRORS=1 \
//!     cargo test --release -p kiln-kernels --test contraction small_ -- --test-threads=1
//! ```

mod cases;
mod check;
mod conv2d;
mod half;
mod int8;
mod matmul;
mod tensor_cores;
