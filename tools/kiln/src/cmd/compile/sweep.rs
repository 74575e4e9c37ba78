//! `kiln compile --budget-sweep`: the effect of the budget on the plan.

use anyhow::{Context, Result, anyhow, bail};
use kiln_compiler::plan::Planned;
use kiln_compiler::plan::time::{Prediction, sampler_steps, streamed_bytes};
use kiln_compiler::quantize::Choices;
use kiln_compiler::request::PlanRequest;
use kiln_compiler::size::mib;
use kiln_compiler::weights;
use kiln_compiler::{DoesNotFit, Model, plan_model};

use super::super::inspect::presets::pictures_ns;
use super::super::print;
use super::{Args, checkpoint, identify, kernels, measure};
use crate::model::{Assembled, ConfiguredModel};

/// Plans for every budget and prints a line for each. INT8 weights are measured if a checkpoint is
/// named. Otherwise all have one scale an output channel.
pub fn run(args: &Args, named: Option<ConfiguredModel>, range: (u64, u64)) -> Result<()> {
    let (name, profile) = args.profile()?;
    let source = args.weights.as_deref().map(weights::open).transpose()?;
    let source = source.map(|source| checkpoint::merge(source, &args.lora)).transpose()?;
    let model = match (&source, named) {
        (Some(source), named) => identify::identify(named, source.as_ref())?,
        (None, Some(named)) => named,
        (None, None) => bail!("neither --model nor --weights: give a model or a checkpoint"),
    };
    let [model] = <[_; 1]>::try_from(args.sized(model)?)
        .map_err(|_| anyhow!("--budget-sweep takes one --size"))?;
    let model_name = model.0.name.clone();
    checkpoint::check_inputs(&model)?;
    let (around, tiny) = args.autoencoder.choose(&model.0, source.as_deref())?;
    let choices = match (source, args.precision) {
        (Some(source), super::Precision::Int8) => {
            let source = args.autoencoder.join(source, &model.0, &around, tiny)?;
            measure(&Assembled { model: model.clone(), around: around.clone() }, source.as_ref())?
        }
        _ => Choices::default(),
    };
    let model = Assembled { model, around };
    let precision = args.precision.name();
    let request = |budget_bytes| PlanRequest {
        profile: &profile,
        storage: args.precision.storage(&choices),
        budget_bytes,
        guidance_branches: args.guidance_branches.map(usize::from),
        guidance_batch: args.guidance_batch.map(usize::from),
        fast: args.fast,
        lora_bytes: args.lora_memory.unwrap_or(0),
    };
    let manifest = model.manifest();
    let steps = sampler_steps(&manifest);
    let guidance = match request(0).branches(&manifest) {
        1 => "without",
        _ => "with",
    };
    print::line(format_args!(
        "{model_name} {precision} for {name}, {steps} steps {guidance} guidance"
    ))?;
    print::line(format_args!(
        "{:>12} {:>14} {:>12} {:>12} {:>12} {:>7} {:>20} {:>15}  strategy",
        "budget",
        "planned peak",
        "arena",
        "over bound",
        "slots",
        "kernels",
        "streamed a picture",
        "predicted time"
    ))?;
    for budget_bytes in budgets(range) {
        let planned = plan_model(&model, &name, precision, &request(budget_bytes));
        if let (Some(folder), Ok(planned)) = (&args.kernels, &planned) {
            kernels::write(&planned.plan, folder)?;
        }
        print::line(format_args!("{:>12} {}", mib(budget_bytes), line(planned)?))?;
    }
    Ok(())
}

/// Budgets in the range, in steps of a half and a third: 256, 384, 512, 768 MiB, ..., and the
/// range's end.
fn budgets((from, to): (u64, u64)) -> Vec<u64> {
    let doubled = std::iter::successors(Some(from), |b| b.checked_mul(2));
    let mut list: Vec<u64> = doubled.flat_map(|b| [b, b + b / 2]).take_while(|b| *b < to).collect();
    list.push(to);
    list
}

fn line(planned: Result<Planned>) -> Result<String> {
    let plan = match planned {
        Ok(planned) => planned.plan,
        Err(error) => {
            let needs_bytes = error.downcast::<DoesNotFit>()?.shortfall.needs_bytes;
            return Ok(format!("too small: {} at least", mib(needs_bytes)));
        }
    };
    let prediction = Prediction::new(&plan);
    let seconds = |ns: u64| format!("{:.1}", ns as f64 / 1e9);
    let least = seconds(prediction.picture_ns(&plan));
    let most = seconds(Prediction::single_issue(&plan).picture_ns(&plan));
    let time = if least == most { least } else { format!("{least} to {most}") };
    let presets = pictures_ns(&plan, &prediction).into_iter().zip(1..);
    let presets: String =
        presets.map(|(ns, n)| format!("--fast {n} {} s, ", seconds(ns))).collect();
    let strategy = &plan.rationale.attempts.last().context("a plan has a strategy")?.strategy;
    let memory = &plan.memory;
    let over_bytes = memory.arena_bytes - memory.arena_lower_bound_bytes;
    Ok(format!(
        "{:>14} {:>12} {:>12} {:>12} {:>7} {:>20} {time:>13} s  {presets}{strategy}",
        mib(memory.peak_bytes()),
        mib(memory.arena_bytes),
        format!("{over_bytes} B"),
        mib(memory.slot_bytes.iter().sum()),
        plan.kernels.len(),
        mib(streamed_bytes(&plan))
    ))
}

#[cfg(test)]
mod tests {
    use super::budgets;

    #[test]
    fn budgets_cover_the_range() {
        assert_eq!(budgets((256, 1024)), [256, 384, 512, 768, 1024]);
        assert_eq!(budgets((100, 130)), [100, 130]);
        assert_eq!(budgets((7, 7)), [7]);
    }
}
