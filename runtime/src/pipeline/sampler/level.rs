//! What latents are made of, and how an evaluation of the network moves them.

use kiln_bundle::plan::Prediction;

/// Composition of the latents at an evaluation: `picture * p + noise * n`. `p` is the latent of an
/// image and `n` is standard normal noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Factor of the image.
    pub picture: f64,
    /// Factor of the noise.
    pub noise: f64,
}

impl Level {
    /// An image without noise.
    pub const IMAGE: Level = Level { picture: 1.0, noise: 0.0 };

    /// Noise of standard deviation `sigma` beside an image of variance 1.
    pub(super) fn exploding(sigma: f64) -> Level {
        Level { picture: 1.0, noise: sigma }
    }

    /// [`exploding`](Self::exploding), scaled so that variances sum to 1.
    pub(super) fn preserving(sigma: f64) -> Level {
        let picture = sigma.hypot(1.0).recip();
        Level { picture, noise: sigma * picture }
    }

    /// The level where the image has this part of the variance.
    pub(super) fn of_alpha(alpha: f64) -> Level {
        Level { picture: alpha.sqrt(), noise: (1.0 - alpha).sqrt() }
    }

    /// Factors of the latents and of the network's output in the image that the network predicts at
    /// this level.
    pub(super) fn picture_factors(self, prediction: Prediction) -> (f64, f64) {
        let Level { picture, noise } = self;
        match prediction {
            Prediction::Epsilon => (picture.recip(), -noise / picture),
            Prediction::V => {
                let variance = picture * picture + noise * noise;
                (picture / variance, -noise / variance.sqrt())
            }
            Prediction::Sample => (0.0, 1.0),
        }
    }

    /// Half the logarithm of the signal-to-noise ratio.
    pub(super) fn lambda(self) -> f64 {
        (self.picture / self.noise).ln()
    }

    /// The mix that takes latents from this level to another one: the predicted image stays, and
    /// the noise that it leaves is scaled.
    pub(super) fn towards(self, next: Level) -> Mix {
        let latent = next.noise / self.noise;
        Mix { latent, picture: next.picture - latent * self.picture, ..Mix::default() }
    }
}

/// Factors of five tensors in a sum.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Mix {
    /// Of the latents.
    pub latent: f64,
    /// Of the image that the network predicts.
    pub picture: f64,
    /// Of the image that the previous evaluation predicted.
    pub before: f64,
    /// Of the image that the evaluation before the previous one predicted.
    pub older: f64,
    /// Of the latents from which the previous evaluation moved.
    pub kept: f64,
}

impl Mix {
    pub const LATENT: Mix = Mix { latent: 1.0, picture: 0.0, before: 0.0, older: 0.0, kept: 0.0 };

    pub fn of(self, latent: f64, picture: f64, [before, older, kept]: [f32; 3]) -> f64 {
        let [before, older, kept] = [before, older, kept].map(f64::from);
        self.latent * latent
            + self.picture * picture
            + self.before * before
            + self.older * older
            + self.kept * kept
    }
}

/// An evaluation of the network, and what it does to the latents.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Move {
    pub timestep: f64,
    /// Composition of the latents that the network reads.
    pub level: Level,
    /// What the latents become once the network's output is known.
    pub correction: Mix,
    /// The next latents, of the corrected ones.
    pub mix: Mix,
    /// Standard deviation of the fresh noise in the next latents.
    pub fresh: f64,
}

impl Move {
    pub fn new(timestep: f64, level: Level, mix: Mix, fresh: f64) -> Move {
        Move { timestep, level, correction: Mix::LATENT, mix, fresh }
    }
}
