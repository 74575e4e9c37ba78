//! Positions of the rows of A in a source.

use kiln_ir::TensorType;
use kiln_ir::ops::conv2d::Conv2d;
use serde::Serialize;

/// Output pixel `(b, oy, ox)` under tap `(ky, kx)` reads the source's pixel
/// `y = oy * stride_y + ky * step_y - padding`, `x = ox * stride_x + kx - padding`, zero outside
/// `[0, window_h) x [0, window_w)`; with `upsample` at `(y / 2, x / 2)`. A pixel is
/// `pixel_factor` times the channels of a tap wide, and row `ky` of the window begins
/// `ky * tap_factor` times these channels into it.
///
/// ```text
///            step_y  pixel_factor  tap_factor
///  window         1             1           0    the feature map itself
///  im2win         0             k           1    each pixel holds its column of the window
///  rows           1             1           0    a feature map of one line, window 1x1
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Geometry {
    /// Number of feature maps.
    pub batch: usize,
    /// Stored height of a source.
    pub in_h: usize,
    /// Stored width of a source.
    pub in_w: usize,
    /// Height that the window sees.
    pub window_h: usize,
    /// Width that the window sees.
    pub window_w: usize,
    /// Output height.
    pub out_h: usize,
    /// Output width.
    pub out_w: usize,
    /// Taps in each direction.
    pub kernel: usize,
    /// Distance of windows in lines.
    pub stride_y: usize,
    /// Distance of windows in pixels.
    pub stride_x: usize,
    /// Zeros around the feature map.
    pub padding: usize,
    /// Distance of taps in lines.
    pub step_y: usize,
    /// Width of a pixel, in units of a tap's channels.
    pub pixel_factor: usize,
    /// Distance of window lines, in units of a tap's channels.
    pub tap_factor: usize,
    /// Whether the window sees each pixel doubled in both directions.
    pub upsample: bool,
    /// Whether row `m` is pixel `m`, without a window.
    pub pointwise: bool,
}

impl Geometry {
    /// The geometry of a matrix with `rows` rows.
    pub fn rows(rows: usize) -> Self {
        Self {
            batch: 1,
            in_h: 1,
            in_w: rows,
            window_h: 1,
            window_w: rows,
            out_h: 1,
            out_w: rows,
            kernel: 1,
            stride_y: 1,
            stride_x: 1,
            padding: 0,
            step_y: 1,
            pixel_factor: 1,
            tap_factor: 0,
            upsample: false,
            pointwise: true,
        }
    }

    /// A convolution over feature maps `[n, h, w, _]`.
    pub fn window(op: &Conv2d, [n, h, w, _]: [usize; 4], output: &TensorType) -> Self {
        let (window_h, window_w) = op.window_extent(h, w);
        let plain = op.kernel == 1
            && op.stride == 1
            && op.padding == 0
            && op.padding_end == 0
            && !op.upsample;
        if plain {
            return Self::rows(n * h * w);
        }
        Self {
            batch: n,
            in_h: h,
            in_w: w,
            window_h,
            window_w,
            out_h: output.shape[1],
            out_w: output.shape[2],
            kernel: op.kernel,
            stride_y: op.stride,
            stride_x: op.stride,
            padding: op.padding,
            upsample: op.upsample,
            pointwise: false,
            ..Self::rows(1)
        }
    }

    /// The same windows over a copy `[batch][out_h][in_w][ky][c]` of the feature map, in which
    /// every pixel holds its column of the window, padding included.
    pub fn im2win(&self) -> Self {
        let width = (self.out_w - 1) * self.stride_x + self.kernel;
        Self {
            in_h: self.out_h,
            in_w: width,
            window_h: self.out_h,
            window_w: width,
            stride_y: 1,
            step_y: 0,
            padding: 0,
            upsample: false,
            pointwise: false,
            pixel_factor: self.kernel,
            tap_factor: 1,
            ..*self
        }
    }

    /// Whether every pixel of every window lies in the feature map.
    pub fn windows_are_inside(&self) -> bool {
        let reach =
            |outputs: usize, stride, step| (outputs - 1) * stride + (self.kernel - 1) * step;
        self.padding == 0
            && reach(self.out_h, self.stride_y, self.step_y) < self.window_h
            && reach(self.out_w, self.stride_x, 1) < self.window_w
    }

    /// Output pixels of all feature maps.
    pub fn rows_total(&self) -> usize {
        self.batch * self.out_h * self.out_w
    }
}
