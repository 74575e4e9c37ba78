//! Builds a launch: tensors, parameters and geometry of one kernel.

use crate::template::{Parameters, render};
use crate::{Argument, DeviceClass, Launch, Problem, Target};
use anyhow::Result;
use kiln_ir::DType;
use serde::Serialize;

/// One kernel call under construction. Tensors become arguments in the order of their calls, and
/// the template sees them under their names.
pub struct Call<'a> {
    problem: &'a Problem<'a>,
    tensors: Vec<(&'static str, DType)>,
    args: Vec<Argument>,
    parameters: Parameters,
    local_mem_bytes: u64,
    flops: u64,
}

impl<'a> Call<'a> {
    /// A call without arguments. It counts the op's whole arithmetic.
    pub fn new(problem: &'a Problem<'a>) -> Self {
        let types: Vec<_> = problem.inputs.iter().map(|o| &o.ty).collect();
        Self {
            problem,
            tensors: vec![],
            args: vec![],
            parameters: Parameters::new(),
            local_mem_bytes: 0,
            flops: problem.op.flops(&types, problem.output),
        }
    }

    /// Passes a whole input.
    pub fn input(mut self, name: &'static str, index: usize) -> Self {
        let ty = &self.problem.inputs[index].ty;
        self.tensors.push((name, ty.dtype));
        self.args.push(Argument::Input { index, offset_bytes: 0, len_bytes: ty.size_bytes() });
        self
    }

    /// Passes the output.
    pub fn output(mut self, name: &'static str) -> Self {
        self.tensors.push((name, self.problem.output.dtype));
        self.args.push(Argument::Output);
        self
    }

    /// Passes scratch memory of `float`.
    pub fn scratch(mut self, name: &'static str, index: usize, written: bool) -> Self {
        self.tensors.push((name, DType::F32));
        self.args.push(Argument::Scratch { index, written });
        self
    }

    /// Passes numbers, after the tensors so far.
    pub fn numbers(mut self, values: &[usize]) -> Self {
        self.args.extend(values.iter().map(|v| Argument::U32(*v as u32)));
        self
    }

    /// Sets a parameter of the template.
    pub fn set<T: Serialize + ?Sized>(mut self, key: &'static str, value: &T) -> Self {
        self.parameters = self.parameters.set(key, value);
        self
    }

    /// Sets parameters of the template.
    pub fn with(mut self, set: impl FnOnce(Parameters) -> Parameters) -> Self {
        self.parameters = set(self.parameters);
        self
    }

    /// States the local memory that the kernel declares.
    pub fn local_mem_bytes(mut self, bytes: u64) -> Self {
        self.local_mem_bytes = bytes;
        self
    }

    /// Replaces the count of arithmetic, in FLOP.
    pub fn flops(mut self, flops: u64) -> Self {
        self.flops = flops;
        self
    }

    /// Renders `template` for the given global and local sizes.
    ///
    /// Errors: a template that names an undefined parameter.
    pub fn launch(
        self,
        entry: &'static str,
        template: &str,
        global: [usize; 3],
        local: Option<[usize; 3]>,
    ) -> Result<Launch> {
        let source = render(template, &self.tensors, &self.parameters)?;
        let local = local.map(|l| l.map(|v| v as u64));
        let launch = Launch::new(source, entry, self.args, global.map(|v| v as u64), local);
        let (local_mem_bytes, flops) = (self.local_mem_bytes, self.flops);
        Ok(Launch { local_mem_bytes, flops, ..launch })
    }
}

/// A C literal with the exact value of `v`.
pub fn literal(v: f32) -> String {
    format!("{v:e}f").replace("ef", "e0f")
}

/// Whether every input and the output are stored as floating point and none is empty. All kernels
/// except those of contractions require it.
pub fn floating(problem: &Problem, _: &Target) -> bool {
    let types = problem.inputs.iter().map(|o| &o.ty).chain([problem.output]);
    types.into_iter().all(|ty| ty.dtype.is_float() && ty.elem_count() > 0)
}

/// Whether the target is a CPU, for variants with one work-item for whole rows.
pub fn cpu(target: &Target) -> bool {
    target.class == DeviceClass::Cpu
}
