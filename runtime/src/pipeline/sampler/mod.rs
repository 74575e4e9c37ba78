//! Diffusion samplers: the timesteps of the U-Net, and the effect of its output on the latents.
//!
//! A sampler is a list of moves, one for each evaluation of the network: every sampler here
//! mixes the same five tensors by factors that are known before the first evaluation. A new sampler
//! is a function that makes the list, and a line in [`SAMPLERS`].

mod consistency;
mod ddim;
mod dpmpp;
mod euler;
mod guidance;
mod level;
mod run;
mod schedule;

use kiln_bundle::plan::{Schedule, Spacing};

use level::Move;

pub use guidance::{guidance_embedding, guide};
pub use level::Level;
pub use run::Sampler;
pub use schedule::alphas_cumulative;

/// Reason why a sampler cannot be made or cannot step.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// No sampler has this name.
    #[error("no sampler is named {name:?}; there are: {known}")]
    UnknownSampler {
        /// The requested name.
        name: String,
        /// The known names, separated by commas.
        known: String,
    },
    /// The sampler cannot space its timesteps so.
    #[error("{sampler} has no spacing {spacing:?}; it has: {known}")]
    Spacing {
        /// Name of the sampler.
        sampler: &'static str,
        /// The requested spacing.
        spacing: String,
        /// The spacings that the sampler has, separated by commas.
        known: String,
    },
    /// The number of steps is zero or exceeds the timesteps of the training.
    #[error("{steps} sampling steps requested; 1 to {max_steps} are possible")]
    Steps {
        /// Requested steps.
        steps: usize,
        /// Largest number of steps.
        max_steps: usize,
    },
    /// A share is not in `[0, 1]`.
    #[error("{name} is {value}, it must be from 0 to 1")]
    Share {
        /// Name of the option.
        name: &'static str,
        /// Requested value.
        value: f32,
    },
    /// The noise schedule's betas are not in `(0, 1)`, or it has no timesteps.
    #[error("the model's betas, {beta_start} to {beta_end} in {train_steps}, are not possible")]
    Schedule {
        /// First beta.
        beta_start: f64,
        /// Last beta.
        beta_end: f64,
        /// Number of timesteps.
        train_steps: u32,
    },
    /// The sampler has no evaluation of this index.
    #[error("evaluation {index} requested; the sampler has {count}")]
    Index {
        /// Index of the evaluation, from 0.
        index: usize,
        /// Number of evaluations.
        count: usize,
    },
    /// Latents and another tensor differ in length.
    #[error("{latents_elems} latents but {other_elems} elements of network output or input")]
    Length {
        /// Elements of the latents.
        latents_elems: usize,
        /// Elements of the other tensor.
        other_elems: usize,
    },
}

/// Options of any sampler.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOptions {
    /// Number of steps, from 1 to the schedule's timesteps.
    pub steps: usize,
    /// The first step that runs.
    pub first: usize,
    /// Spacing of the timesteps. `lcm` has its own unless it is trailing, `tcd` always.
    pub spacing: Spacing,
    /// Noise that each step adds, from 0 (none) to 1, for samplers with [`SamplerEntry::eta`].
    pub eta: f32,
    /// The model's training.
    pub schedule: Schedule,
    /// Elements of the latents.
    pub latent_elems: usize,
}

impl SamplerOptions {
    /// The options for Stable Diffusion 2.1-base: epsilon prediction, leading timesteps, eta 0.
    pub fn stable_diffusion(steps: usize, latent_elems: usize) -> Self {
        let schedule = Schedule::default();
        Self { steps, first: 0, spacing: schedule.spacing, eta: 0.0, schedule, latent_elems }
    }
}

/// A sampler that can be chosen by name.
pub struct SamplerEntry {
    /// The name, in small letters.
    pub name: &'static str,
    /// Name of the sampler in AUTOMATIC1111's web UI and in viewers of its images.
    pub title: &'static str,
    /// Evaluations of the network in a step.
    evaluations: usize,
    /// Spacings of the timesteps.
    pub spacings: &'static [Spacing],
    /// Whether the sampler has timesteps of its own, which are its default.
    pub has_own: bool,
    /// Default of [`SamplerOptions::eta`], if the sampler uses it.
    pub eta: Option<f32>,
    /// The moves of all steps.
    moves: fn(&SamplerOptions) -> Result<Vec<Move>, SamplerError>,
}

/// Spacings of samplers over timesteps.
const BY_TIMESTEP: &[Spacing] = &[Spacing::Leading, Spacing::Trailing, Spacing::Linspace];

/// All samplers.
pub static SAMPLERS: &[SamplerEntry] = &[
    entry("ddim", "DDIM", BY_TIMESTEP, Some(0.0), ddim::moves),
    entry("euler", "Euler", &Spacing::ALL, None, euler::euler),
    entry("euler-a", "Euler a", &Spacing::ALL, None, euler::ancestral),
    SamplerEntry { evaluations: 2, ..entry("heun", "Heun", &Spacing::ALL, None, euler::heun) },
    entry("dpm++2m", "DPM++ 2M", &Spacing::ALL, None, dpmpp::multistep),
    entry("dpm++2m-sde", "DPM++ 2M SDE", &Spacing::ALL, None, dpmpp::stochastic),
    entry("unipc", "UniPC", &Spacing::ALL, None, dpmpp::unipc),
    SamplerEntry {
        has_own: true,
        ..entry("lcm", "LCM", &[Spacing::Trailing], None, consistency::lcm)
    },
    SamplerEntry { has_own: true, ..entry("tcd", "TCD", &[], Some(0.3), consistency::tcd) },
];

const fn entry(
    name: &'static str,
    title: &'static str,
    spacings: &'static [Spacing],
    eta: Option<f32>,
    moves: fn(&SamplerOptions) -> Result<Vec<Move>, SamplerError>,
) -> SamplerEntry {
    SamplerEntry { name, title, evaluations: 1, spacings, has_own: false, eta, moves }
}

impl SamplerEntry {
    /// The sampler with a name, as it is written here or elsewhere: `euler-a` is also `euler_a`,
    /// `Euler a` and `euler_ancestral`, and `dpm++2m` also `DPM++ 2M` and `dpmpp_2m`.
    ///
    /// Errors: [`SamplerError::UnknownSampler`].
    pub fn find(name: &str) -> Result<&'static SamplerEntry, SamplerError> {
        let wanted = folded(name);
        let entry = SAMPLERS.iter().find(|entry| folded(entry.name) == wanted);
        entry.ok_or_else(|| SamplerError::UnknownSampler {
            name: name.to_owned(),
            known: SAMPLERS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// [`find`](Self::find), and the spacing at the name's end, as in `DPM++ 2M Karras`.
    ///
    /// Errors: [`SamplerError::UnknownSampler`], [`SamplerError::Spacing`].
    pub fn find_spaced(
        name: &str,
    ) -> Result<(&'static SamplerEntry, Option<Spacing>), SamplerError> {
        let spacing = Spacing::Karras.name();
        let wanted = folded(name);
        match wanted.strip_suffix(spacing) {
            Some(sampler) if !sampler.is_empty() => {
                let entry = SamplerEntry::find(sampler)?;
                Ok((entry, Some(entry.spacing(spacing)?)))
            }
            _ => Ok((SamplerEntry::find(name)?, None)),
        }
    }

    /// The spacing with a name.
    ///
    /// Errors: [`SamplerError::Spacing`].
    pub fn spacing(&self, name: &str) -> Result<Spacing, SamplerError> {
        let mut known = self.spacings.iter();
        known.find(|known| known.name().eq_ignore_ascii_case(name)).copied().ok_or_else(|| {
            let known: Vec<_> = self.spacings.iter().map(|known| known.name()).collect();
            let known = if known.is_empty() { "its own".into() } else { known.join(", ") };
            SamplerError::Spacing { sampler: self.name, spacing: name.to_owned(), known }
        })
    }

    /// Makes the sampler.
    ///
    /// Errors: [`SamplerError::Steps`], [`SamplerError::Share`], [`SamplerError::Schedule`].
    pub fn sampler(&self, options: &SamplerOptions) -> Result<Sampler, SamplerError> {
        check_share("eta", options.eta)?;
        let mut moves = (self.moves)(options)?;
        moves.drain(..moves.len().min(options.first * self.evaluations));
        Ok(Sampler::new(moves, self.evaluations, options))
    }
}

/// A sampler's name without case and separators, which programs write differently.
fn folded(name: &str) -> String {
    let name = name.to_ascii_lowercase().replace([' ', '_', '-'], "");
    name.replace("dpmpp", "dpm++").replace("ancestral", "a")
}

/// Checks an option that is a share.
///
/// Errors: [`SamplerError::Share`].
pub fn check_share(name: &'static str, value: f32) -> Result<(), SamplerError> {
    match (0.0..=1.0).contains(&value) {
        true => Ok(()),
        false => Err(SamplerError::Share { name, value }),
    }
}

fn check_lengths(latents: &[f32], other: &[f32]) -> Result<(), SamplerError> {
    if latents.len() != other.len() {
        let (latents_elems, other_elems) = (latents.len(), other.len());
        return Err(SamplerError::Length { latents_elems, other_elems });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sampler_is_found_and_refuses_nonsense() {
        for entry in SAMPLERS {
            let options = SamplerOptions::stable_diffusion(20, 16);
            let found = SamplerEntry::find(&entry.name.to_uppercase()).unwrap();
            let sampler = found.sampler(&options).unwrap();
            assert_eq!(sampler.steps(), 20, "{}", entry.name);
            // The network's input has variance 1 at every level.
            for index in 0..sampler.timesteps().len() {
                let (level, mut input) = (sampler.level(index).unwrap(), [0.0]);
                let latent = level.picture.hypot(level.noise) as f32;
                sampler.scale_model_input(index, &[latent], &mut input).unwrap();
                assert!((input[0] - 1.0).abs() < 1e-6, "{} {index}: {input:?}", entry.name);
            }
            assert!(sampler.level(40).is_err());
            for steps in [0, 1001, usize::MAX] {
                let options = SamplerOptions { steps, ..options.clone() };
                assert!(matches!(entry.sampler(&options), Err(SamplerError::Steps { .. })));
            }
            for eta in [-0.1, 1.1, f32::NAN] {
                let options = SamplerOptions { eta, ..options.clone() };
                assert!(matches!(entry.sampler(&options), Err(SamplerError::Share { .. })));
            }
        }
        let error = SamplerEntry::find("ddmi").err().unwrap();
        assert!(error.to_string().contains("ddim"), "{error}");
    }

    #[test]
    fn names_of_other_programs_are_found() {
        let found = |name| {
            let (entry, spacing) = SamplerEntry::find_spaced(name).unwrap();
            (entry.name, spacing)
        };
        for entry in SAMPLERS {
            assert_eq!(found(entry.title), (entry.name, None));
        }
        assert_eq!(found("euler_a"), ("euler-a", None));
        assert_eq!(found("euler_ancestral"), ("euler-a", None));
        assert_eq!(found("dpmpp_2m_sde"), ("dpm++2m-sde", None));
        assert_eq!(found("uni_pc"), ("unipc", None));
        assert_eq!(found("DPM++ 2M Karras"), ("dpm++2m", Some(Spacing::Karras)));
        assert!(SamplerEntry::find_spaced("karras").is_err());
        assert!(SamplerEntry::find_spaced("ddim karras").is_err());
    }

    #[test]
    fn a_spacing_that_a_sampler_lacks_is_refused_with_those_it_has() {
        let error = |name, spacing| {
            SamplerEntry::find(name).unwrap().spacing(spacing).unwrap_err().to_string()
        };
        let expected = "ddim has no spacing \"karras\"; it has: leading, trailing, linspace";
        assert_eq!(error("ddim", "karras"), expected);
        assert_eq!(error("tcd", "trailing"), "tcd has no spacing \"trailing\"; it has: its own");
    }

    #[test]
    fn timesteps_equal_diffusers() {
        let timesteps = |name, steps| {
            let options = SamplerOptions::stable_diffusion(steps, 0);
            let sampler = SamplerEntry::find(name).unwrap().sampler(&options).unwrap();
            sampler.timesteps().to_vec()
        };
        assert_eq!(timesteps("ddim", 5), [801.0, 601.0, 401.0, 201.0, 1.0]);
        // 1000 / 30 is 33.
        assert_eq!((timesteps("ddim", 30)[0], timesteps("ddim", 30)[29]), (958.0, 1.0));
        assert_eq!((timesteps("ddim", 1000)[0], timesteps("ddim", 1000)[999]), (999.0, 0.0));
        assert_eq!(timesteps("dpm++2m", 20)[..2], [941.0, 894.0]);
        assert_eq!(timesteps("lcm", 4), [999.0, 759.0, 499.0, 259.0]);
        let options = SamplerOptions::stable_diffusion(4, 0);
        let options = SamplerOptions { spacing: Spacing::Trailing, ..options };
        let lcm = SamplerEntry::find("lcm").unwrap().sampler(&options).unwrap();
        assert_eq!(lcm.timesteps(), [999.0, 749.0, 499.0, 249.0]);
        assert_eq!(timesteps("heun", 3), [667.0, 334.0, 334.0, 1.0, 1.0]);
        for steps in 1..1000 {
            for name in ["ddim", "euler", "dpm++2m"] {
                let timesteps = timesteps(name, steps);
                assert_eq!(timesteps.len(), steps);
                assert!(timesteps.is_sorted_by(|a, b| a > b) && timesteps[0] < 1000.0);
            }
        }
    }

    #[test]
    fn steps_end_with_their_last_evaluations() {
        let options = SamplerOptions { first: 1, ..SamplerOptions::stable_diffusion(4, 0) };
        let heun = SamplerEntry::find("heun").unwrap().sampler(&options).unwrap();
        assert_eq!((heun.steps(), heun.timesteps().len()), (3, 5));
        let found: Vec<_> = (0..5).map(|index| heun.step_of(index)).collect();
        assert_eq!(found, [(1, false), (1, true), (2, false), (2, true), (3, true)]);
    }

    #[test]
    fn eta_adds_noise_of_the_stated_variance() {
        const ELEMS: usize = 100_000;
        let options = SamplerOptions { eta: 1.0, ..SamplerOptions::stable_diffusion(20, ELEMS) };
        let mut ddim = SamplerEntry::find("ddim").unwrap().sampler(&options).unwrap();
        let alphas = alphas_cumulative(&options.schedule).unwrap();
        let (now, next) = (alphas[801], alphas[751]);
        let expected = ((1.0 - next) / (1.0 - now) * (1.0 - now / next)).sqrt();
        let mut latents = vec![0.0; ELEMS];
        let mut rng = super::super::rng::NormalRng::from_seed(1);
        ddim.step(3, &vec![0.0; ELEMS], &mut latents, &mut rng).unwrap();
        let square: f64 = latents.iter().map(|x| f64::from(x * x)).sum();
        let found = (square / ELEMS as f64).sqrt();
        assert!((found / expected - 1.0).abs() < 0.01, "{found} is not {expected}");
    }

    #[test]
    fn wrong_use_is_an_error() {
        let options = SamplerOptions::stable_diffusion(20, 16);
        let mut ddim = SamplerEntry::find("ddim").unwrap().sampler(&options).unwrap();
        let mut rng = super::super::rng::NormalRng::from_seed(0);
        let error = ddim.step(20, &[0.0; 16], &mut [0.0; 16], &mut rng);
        assert_eq!(error, Err(SamplerError::Index { index: 20, count: 20 }));
        let error = ddim.step(0, &[0.0; 15], &mut [0.0; 16], &mut rng);
        assert_eq!(error, Err(SamplerError::Length { latents_elems: 16, other_elems: 15 }));
        let error = ddim.step(0, &[0.0; 15], &mut [0.0; 15], &mut rng);
        assert_eq!(error, Err(SamplerError::Length { latents_elems: 15, other_elems: 16 }));
    }
}
