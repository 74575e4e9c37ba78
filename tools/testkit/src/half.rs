//! Kernels with half arithmetic on devices with and without it.
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::matmul::Matmul;
use kiln_ir::{DType, Op, TensorType};
use kiln_kernels::{Launch, Operand, Problem, Target, candidates};

/// The section of a kernel, as it ships, that is replaced if it does not build.
const SECTION: &str = kiln_kernels::contraction::mobile::HALF_ARITHMETIC;
const BEGIN: &str = "/* Half arithmetic. */";
const END: &str = "/* End of half arithmetic. */";

/// Support of a device for kernels with half arithmetic, best first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Kernels build unchanged.
    Declared,
    /// The device has the types, but does not declare the extension.
    Undeclared,
    /// The device has types and operators, but neither the extension nor its functions.
    Operators,
    /// Emulated in FP32, rounded to FP16 after each operation. Also for devices that build half
    /// arithmetic, but not all uses of FP16 vectors in the kernels, such as NVIDIA GPUs.
    Emulated,
}

impl Way {
    /// The first way in which all trials build.
    pub fn find(builds: impl Fn(&str) -> bool) -> Self {
        let ways = [Way::Declared, Way::Undeclared, Way::Operators];
        let trials = trials();
        let found = ways.into_iter().find(|way| trials.iter().all(|t| builds(&way.source(t))));
        let way = found.unwrap_or(Way::Emulated);
        println!("half arithmetic: {way:?}");
        way
    }

    /// A kernel in the form that builds. A kernel without half arithmetic stays unchanged.
    pub fn source(self, source: &str) -> String {
        let (Some(begin), Some(end)) = (source.find(BEGIN), source.find(END)) else {
            return source.to_owned();
        };
        let section = &source[begin..end];
        let section = match self {
            Way::Declared => section.to_owned(),
            Way::Undeclared => format!("#define cl_khr_fp16\n{section}"),
            Way::Operators => {
                let operators = section.replace("fma(a, b, c)", "((a) * (b) + (c))");
                format!("#define cl_khr_fp16\n{operators}")
            }
            Way::Emulated => include_str!("half.cl").to_owned(),
        };
        [&source[..begin], &section, &source[end..]].concat()
    }
}

/// Name of the kernel of [`trial`], which is part of all [`trials`].
pub const TRIAL: &str = "trial";
/// Name of the shipped kernel, which is also part of all [`trials`].
pub const KERNEL: &str = "contraction_tiled_mobile_half";

/// A kernel with all operations of the section, and with constants, which Oclgrind does not
/// support. One work-item computes four elements of
/// `out[i] = a[i] * b[i] + c[i]`.
pub fn trial() -> String {
    [&SECTION[SECTION.find(BEGIN).expect("it begins")..], &trial_kernel()].concat()
}

/// Programs with this kernel after a shipped one. A driver may support every operation and yet fail
/// on vectors that are selected, split and added in loops.
pub fn trials() -> Vec<String> {
    let tiles = |target| Target { tile_rows: 6, tile_columns: 8, half_run: 8, ..target };
    let same = Conv2d::new(3, 1);
    let kernels = [
        kernel(Matmul::default(), &[24, 64], &[96, 64], Target::mobile_half()),
        kernel(Matmul::default(), &[24, 37], &[33, 37], tiles(Target::mobile())),
        kernel(same.clone(), &[1, 5, 7, 32], &[36, 32, 3, 3], tiles(Target::mobile())),
        kernel(same, &[1, 5, 7, 13], &[3, 13, 3, 3], Target::mobile_half()),
    ];
    kernels.map(|launch| [&launch.source, trial_kernel().as_str()].concat()).into()
}

/// The launch of an op in half arithmetic.
fn kernel(op: impl Into<Op>, x: &[usize], weights: &[usize], target: Target) -> Launch {
    let ty = |shape| TensorType::new(DType::F16, shape);
    let inputs = [Operand::new(ty(x)), Operand::constant(ty(weights))];
    let op = op.into();
    let output = op.infer(&[&inputs[0].ty, &inputs[1].ty]).expect("shapes that fit");
    let problem = Problem::unlimited(&op, &inputs, &output);
    let variant = candidates(&problem, &target)[0];
    let lowering = variant.lower(&problem, &target).expect("it applies");
    let launch = lowering.launches.into_iter().next().expect("it has one");
    assert_eq!((launch.entry, launch.half_arithmetic), (KERNEL, true));
    launch
}

fn trial_kernel() -> String {
    format!(
        "
__kernel void {TRIAL}(const __global half *a, const __global half *b, const __global half *c,
    __global float *out)
{{
    const uint i = get_global_id(0) * 4;
    HV x = FMA_HV(LOADV_HV(c, i), (HV)(1.0f), (HV)(0.0f));
    x = FMA_HV((HV)(LOADA_HV(a, i)), LOADV_HV(b, i), x);
    vstore4(FLOATS(x), 0, out + i);
}}
"
    )
}
