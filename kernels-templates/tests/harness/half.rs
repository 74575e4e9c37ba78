//! Kernels with half arithmetic on devices with and without it.
#![allow(dead_code)] // each test binary uses its part

/// The part of a kernel that is written anew where it does not build, as it ships.
const SECTION: &str = include_str!("../../half.cl.tera");
const BEGIN: &str = "/* Half arithmetic. */";
const END: &str = "/* End of half arithmetic. */";

/// How a device builds kernels with half arithmetic, best first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// As they are.
    Declared,
    /// It has the types, but does not say so.
    Undeclared,
    /// It has neither the extension nor its functions, only types and operators, as NVIDIA GPUs.
    Operators,
    /// In float, rounded to halves after each operation.
    Emulated,
}

impl Way {
    /// The first way in which a trial builds.
    pub fn find(builds: impl Fn(&str) -> bool) -> Self {
        let ways = [Way::Declared, Way::Undeclared, Way::Operators];
        let found = ways.into_iter().find(|way| builds(&way.source(&trial())));
        let way = found.unwrap_or(Way::Emulated);
        println!("half arithmetic: {way:?}");
        way
    }

    /// A kernel as it is to be built; one without half arithmetic stays as it is.
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

/// Name of the kernel of [`trial`].
pub const TRIAL: &str = "trial";

/// A kernel with all that the section has, and constants, which Oclgrind does not know: `out[i] = a[i] *
/// b[i] + c[i]`, a work-item for each four.
pub fn trial() -> String {
    let section = &SECTION[SECTION.find(BEGIN).expect("it begins")..];
    format!(
        "{section}
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
