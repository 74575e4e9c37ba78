//! Element types, shapes, and the plain `f32` tensor of the reference evaluation.

use std::fmt;

/// Element type of a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16. Storage only.
    F16,
    /// Two's complement, 8 bits (quantized weights).
    I8,
    /// Two's complement, 32 bits (token ids).
    I32,
}

impl DType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> u64 {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 => 2,
            DType::I8 => 1,
        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::I8 => "i8",
            DType::I32 => "i32",
        })
    }
}

/// Element type and static shape of a value, channels last.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
}

impl TensorType {
    /// A type.
    pub fn new(dtype: DType, shape: &[usize]) -> Self {
        Self { dtype, shape: shape.to_vec() }
    }

    /// An `f32` type.
    pub fn f32(shape: &[usize]) -> Self {
        Self::new(DType::F32, shape)
    }

    /// Number of elements.
    pub fn elem_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of all elements.
    pub fn size_bytes(&self) -> u64 {
        self.elem_count() as u64 * self.dtype.size_bytes()
    }

    /// Extent of the last axis; 1 for a scalar.
    pub fn channels(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.elem_count() / self.channels().max(1)
    }

    /// Extent of axis 0; 1 for ranks 0 and 1.
    pub fn batch(&self) -> usize {
        if self.shape.len() > 1 { self.shape[0] } else { 1 }
    }

    /// The same type with another last axis.
    pub fn with_channels(&self, channels: usize) -> Self {
        let mut t = self.clone();
        if let Some(c) = t.shape.last_mut() {
            *c = channels;
        }
        t
    }

    /// `[N, H, W, C]` of a feature map. `None` for another rank.
    pub fn nhwc(&self) -> Option<[usize; 4]> {
        self.shape.as_slice().try_into().ok()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { "," } else { "" })?;
        }
        f.write_str("]")
    }
}

/// A tensor of the reference evaluation: `f32` for every element type (token ids are exact).
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Row-major elements.
    pub data: Vec<f32>,
}

impl Tensor {
    /// A tensor from its elements.
    ///
    /// Panics if the element count does not match the shape.
    pub fn new(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "element count of {shape:?}");
        Self { shape: shape.to_vec(), data }
    }

    /// A tensor of zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        Self::new(shape, vec![0.0; shape.iter().product()])
    }

    /// Extent of the last axis; 1 for a scalar.
    pub fn channels(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.data.len() / self.channels().max(1)
    }

    /// Elements of row `r`.
    pub fn row(&self, r: usize) -> &[f32] {
        let c = self.channels();
        &self.data[r * c..(r + 1) * c]
    }
}
