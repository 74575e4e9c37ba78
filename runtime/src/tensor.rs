//! Tensors of callers, and their conversion to and from the layout of ports.
//!
//! Callers use NCHW and 32-bit elements. Ports are channels last, in the element type of the plan.

use half::f16;
use kiln_bundle::plan::{ElementType, Port};

use crate::error::RuntimeError;

/// A tensor on the host, row-major. Images and latents are `[N, C, H, W]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Length of each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements. The last axis is contiguous.
    pub values: Values,
}

/// The elements of a [`Tensor`].
#[derive(Clone, PartialEq, Debug)]
pub enum Values {
    /// Numbers.
    F32(Vec<f32>),
    /// Token ids.
    I32(Vec<i32>),
}

impl Tensor {
    /// A tensor of numbers.
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Tensor {
        Tensor { shape: shape.to_vec(), values: Values::F32(values) }
    }

    /// A tensor of integers.
    pub fn i32(shape: &[usize], values: Vec<i32>) -> Tensor {
        Tensor { shape: shape.to_vec(), values: Values::I32(values) }
    }

    /// Number of elements.
    pub fn elem_count(&self) -> usize {
        match &self.values {
            Values::F32(values) => values.len(),
            Values::I32(values) => values.len(),
        }
    }

    /// The elements if they are `f32`.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.values {
            Values::F32(values) => Some(values),
            Values::I32(_) => None,
        }
    }
}

/// Number of elements of a port.
pub fn port_elems(port: &Port) -> usize {
    port.shape.iter().map(|&axis| axis as usize).product()
}

/// Length of a port in bytes.
pub fn port_bytes(port: &Port) -> u64 {
    port_elems(port) as u64 * port.dtype.size_bytes()
}

/// Replaces `out` by the values, in the port's element type.
///
/// Errors: `Plan` if the port does not hold numbers.
pub(crate) fn encode(
    port: &Port,
    values: impl Iterator<Item = f32>,
    out: &mut Vec<u8>,
) -> Result<(), RuntimeError> {
    out.clear();
    match port.dtype {
        ElementType::F32 => values.for_each(|value| out.extend(value.to_le_bytes())),
        ElementType::F16 => values.for_each(|value| out.extend(f16::from_f32(value).to_le_bytes())),
        ElementType::I8 | ElementType::I32 => return Err(wrong_type(port, "numbers")),
    }
    Ok(())
}

/// Replaces `out` by the integers, in the port's element type.
///
/// Errors: `Plan` if the port does not hold integers of 32 bits.
pub(crate) fn encode_i32(
    port: &Port,
    values: impl Iterator<Item = i32>,
    out: &mut Vec<u8>,
) -> Result<(), RuntimeError> {
    out.clear();
    match port.dtype {
        ElementType::I32 => values.for_each(|value| out.extend(value.to_le_bytes())),
        _ => return Err(wrong_type(port, "integers")),
    }
    Ok(())
}

/// Replaces `out` by the numbers in the bytes of a port.
///
/// Errors: `Plan` if the port does not hold numbers.
pub(crate) fn decode(port: &Port, bytes: &[u8], out: &mut Vec<f32>) -> Result<(), RuntimeError> {
    out.clear();
    match port.dtype {
        ElementType::F32 => {
            out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        ElementType::F16 => {
            out.extend(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()));
        }
        ElementType::I8 | ElementType::I32 => return Err(wrong_type(port, "numbers")),
    }
    Ok(())
}

fn wrong_type(port: &Port, wanted: &str) -> RuntimeError {
    RuntimeError::Plan(format!("port {:?} holds {:?}, not {wanted}", port.name, port.dtype))
}

/// The values of `[C, H * W]` in the order of `[H * W, C]`.
pub(crate) fn to_channels_last(
    values: &[f32],
    channels: usize,
) -> impl Iterator<Item = f32> + Clone {
    let pixels = values.len() / channels.max(1);
    (0..pixels).flat_map(move |pixel| (0..channels).map(move |c| values[c * pixels + pixel]))
}

/// The values of `[H * W, C]` in the order of `[C, H * W]`.
pub(crate) fn to_channels_first(
    values: &[f32],
    channels: usize,
) -> impl Iterator<Item = f32> + Clone {
    let pixels = values.len() / channels.max(1);
    (0..channels).flat_map(move |c| (0..pixels).map(move |pixel| values[pixel * channels + c]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_bundle::plan::BufferId;

    fn port(dtype: ElementType) -> Port {
        Port { name: "x".into(), buffer: BufferId(0), dtype, shape: vec![1, 2, 1, 3] }
    }

    #[test]
    fn layouts_are_inverse() {
        let values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let last: Vec<f32> = to_channels_last(&values, 3).collect();
        assert_eq!(last, [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        assert!(to_channels_first(&last, 3).eq(values));
    }

    #[test]
    fn ports_keep_numbers() {
        let values = [0.0, -1.5, 2.0, 0.25, 1024.0, 6.0];
        for dtype in [ElementType::F32, ElementType::F16] {
            let (mut bytes, mut found) = (Vec::new(), Vec::new());
            encode(&port(dtype), values.into_iter(), &mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, port_bytes(&port(dtype)));
            decode(&port(dtype), &bytes, &mut found).unwrap();
            assert_eq!(found, values);
        }
        let error =
            encode(&port(ElementType::I8), values.into_iter(), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("I8"), "{error}");
        assert!(encode_i32(&port(ElementType::F32), [1].into_iter(), &mut Vec::new()).is_err());
    }
}
