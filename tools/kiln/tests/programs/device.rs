//! A random program on the OpenCL device of the tests.

use kiln_compiler::device::DeviceProfile;
use kiln_ir::Tensor;
use kiln_runtime::device::{DeviceFacts, DeviceType};
use kiln_runtime::session::{Session, SessionOptions};
use kiln_runtime::tensor::{self, Values};
use std::path::Path;
use std::sync::LazyLock;

use crate::values::Inputs;

static DEVICE: LazyLock<DeviceFacts> = LazyLock::new(|| {
    let device = kiln_testkit::device();
    println!("device {}: {}, {}", device.index, device.name, device.platform);
    device
});

/// Whether the device runs what is planned for a profile: PTX on NVIDIA alone, and no work-groups
/// that are larger than its own.
pub fn runs(profile: &DeviceProfile) -> bool {
    let target = &profile.target;
    (DEVICE.vendor.contains("NVIDIA") || !target.ptx_mma)
        && u64::from(target.max_work_group) <= DEVICE.max_work_group_size
        && target.local_mem_bytes <= DEVICE.local_mem_bytes
}

/// A profile with what the device needs beyond it: its alignment, and no half arithmetic.
pub fn adapt(profile: &mut DeviceProfile) {
    let memory = &mut profile.memory;
    memory.base_align_bytes = memory.base_align_bytes.max(DEVICE.base_align_bytes);
    profile.target.half_run = 0;
}

/// Whether its driver compiles for a CPU, which takes long.
pub fn is_cpu() -> bool {
    DEVICE.device_type == DeviceType::Cpu
}

/// Loads a bundle.
pub fn open(bundle: &Path) -> Session {
    let options = SessionOptions { device: DEVICE.index.to_string(), ..SessionOptions::default() };
    let session = Session::open(bundle, &options);
    session.unwrap_or_else(|error| panic!("the device refuses the bundle: {error}"))
}

/// Runs a network; feature maps are channels last.
pub fn run(session: &mut Session, name: &str, inputs: &Inputs) -> Vec<f32> {
    let given: Vec<(&str, tensor::Tensor)> = {
        let ports = session.plan().networks.iter().flat_map(|n| &n.inputs);
        let names = inputs.iter().filter(|(name, _)| ports.clone().any(|p| p.port.name == **name));
        names.map(|(name, value)| (name.as_str(), to_runtime(name, value))).collect()
    };
    let given: Vec<_> = given.iter().map(|(name, value)| (*name, value)).collect();
    let answer = session.eval(name, &given).unwrap_or_else(|error| panic!("{name}: {error}"));
    let values = answer.as_f32().expect("outputs are numbers");
    match answer.shape[..] {
        [rows, channels, ..] if answer.shape.len() == 4 => values
            .chunks(values.len() / rows)
            .flat_map(|row| transposed(row, row.len() / channels))
            .collect(),
        _ => values.to_vec(),
    }
}

/// A tensor as the runtime's callers have it: feature maps are channels first, tokens integers.
fn to_runtime(name: &str, value: &Tensor) -> tensor::Tensor {
    if name == "tokens" {
        let ids = value.data.iter().map(|v| *v as i32).collect();
        return tensor::Tensor { shape: value.shape.clone(), values: Values::I32(ids) };
    }
    match value.shape[..] {
        [rows, height, width, channels] => {
            let chunks = value.data.chunks(value.data.len() / rows);
            let first = chunks.flat_map(|row| transposed(row, channels));
            tensor::Tensor::f32(&[rows, channels, height, width], first.collect())
        }
        _ => tensor::Tensor::f32(&value.shape, value.data.clone()),
    }
}

/// A matrix of so many columns, column by column.
pub fn transposed(matrix: &[f32], columns: usize) -> impl Iterator<Item = f32> {
    (0..columns).flat_map(move |column| matrix.iter().skip(column).step_by(columns).copied())
}
