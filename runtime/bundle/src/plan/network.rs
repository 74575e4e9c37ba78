//! Networks: what each is for, where its inputs come from, what it does to resident weights.

use serde::{Deserialize, Serialize};

use super::{BlockId, BufferId, ElementType, NetworkId, Step};
#[cfg(doc)]
use super::{GUIDANCE_BRANCHES, Manifest};

/// What a network is for. A plan has at most one network of each role, in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Image to latent, once for an image to begin with. Only in bundles made for it.
    ImageEncoder,
    /// Tokens to embedding, once a prompt.
    TextEncoder,
    /// Embedding to the denoiser's keys and values, once a prompt. May be absent.
    PromptProjection,
    /// Latent to image by a tiny autoencoder: once an image instead of [`Role::Decoder`], or for a
    /// preview between two steps of the sampler. It runs before the timestep projection in the
    /// plan, so that nothing it overwrites is read again within the sampler's loop.
    TinyDecoder,
    /// Timesteps to the denoiser's embeddings, once for [`Manifest::timestep_rows`] timesteps. May
    /// be absent.
    TimestepProjection,
    /// Latent to the predicted noise, in every step of the sampler: one pass or two by
    /// [`Manifest::guidance_batch`].
    Denoiser,
    /// The outer levels of [`Role::Denoiser`], for the same batch. The inner levels' value is that
    /// of its last pass, an output of it. May be absent.
    ShallowDenoiser,
    /// The denoiser for the conditional branch of guidance alone. Only beside a [`Role::Denoiser`]
    /// that has all branches in its batch. May be absent.
    ConditionalDenoiser,
    /// The outer levels of [`Role::ConditionalDenoiser`]. May be absent.
    ShallowConditionalDenoiser,
    /// Latent to image, once an image. May be absent if there is a [`Role::TinyDecoder`].
    Decoder,
}

impl Role {
    /// Roles without which nothing can be generated, beside one of [`Role::DECODERS`].
    pub const REQUIRED: [Role; 2] = [Role::TextEncoder, Role::Denoiser];
    /// Roles that turn a latent into an image.
    pub const DECODERS: [Role; 2] = [Role::Decoder, Role::TinyDecoder];

    /// Whether a network of this role runs again within the sampler's loop.
    pub fn is_looped(self) -> bool {
        matches!(self, Role::TinyDecoder | Role::TimestepProjection) || self.is_denoiser()
    }

    /// Whether a network of this role predicts the noise in a latent: the denoiser or one of its
    /// variants, which cost less.
    pub fn is_denoiser(self) -> bool {
        matches!(
            self,
            Role::Denoiser
                | Role::ShallowDenoiser
                | Role::ConditionalDenoiser
                | Role::ShallowConditionalDenoiser
        )
    }

    /// The denoiser of the outer levels alone or of all, for the conditional branch alone or for all.
    pub fn denoiser(shallow: bool, conditional: bool) -> Role {
        match (shallow, conditional) {
            (false, false) => Role::Denoiser,
            (true, false) => Role::ShallowDenoiser,
            (false, true) => Role::ConditionalDenoiser,
            (true, true) => Role::ShallowConditionalDenoiser,
        }
    }

    /// Whether a denoiser of this role computes the outer levels alone.
    pub fn is_shallow(self) -> bool {
        matches!(self, Role::ShallowDenoiser | Role::ShallowConditionalDenoiser)
    }

    /// Whether a denoiser of this role has the conditional branch of guidance alone.
    pub fn is_conditional(self) -> bool {
        matches!(self, Role::ConditionalDenoiser | Role::ShallowConditionalDenoiser)
    }

    /// Whether a network of this role turns a latent into an image.
    pub fn is_decoder(self) -> bool {
        Role::DECODERS.contains(&self)
    }
}

/// A network: its ports, its weights and its steps.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// Name, for people: `text_encoder`, `unet_prompt`, `unet_time`, `unet`, `decoder`, `encoder`,
    /// `tiny_decoder`; the variants of `unet` are `unet_shallow`, `unet_conditional` and
    /// `unet_shallow_conditional`.
    pub name: String,
    /// What the network is for.
    pub role: Role,
    /// Values that are there before the first step.
    pub inputs: Vec<Input>,
    /// Values that are there after the last step.
    pub outputs: Vec<Port>,
    /// Resident blocks that the steps read, by ascending id. Those that are not in the arena are
    /// loaded before the first step.
    pub loads: Vec<BlockId>,
    /// Resident blocks whose bytes in the arena the network uses for something else, by ascending
    /// id. They are not in the arena after it.
    pub overwrites: Vec<BlockId>,
    /// What the network does, in order.
    pub steps: Vec<Step>,
}

/// A named tensor at the border of a network.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Name, for example `latent`.
    pub name: String,
    /// Where it is.
    pub buffer: BufferId,
    /// Element type.
    pub dtype: ElementType,
    /// Shape, channels last.
    pub shape: Vec<u32>,
}

/// An input of a network and where its value comes from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Input {
    /// The tensor.
    pub port: Port,
    /// Who provides its value before each run of the network.
    pub source: Source,
}

/// Where the value of an input comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The host writes it.
    Host(Feed),
    /// A network that runs before computes it.
    Output {
        /// The network.
        network: NetworkId,
        /// Index into [`Network::outputs`].
        output: u32,
        /// The part of the output that is the input.
        slice: Slice,
    },
}

/// A value that the host writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feed {
    /// Token ids of the prompts, one for each branch of guidance, the negative prompt first.
    Tokens,
    /// One image's latent, once for each batch row.
    Latent,
    /// The image to begin with, -1 to 1.
    Image,
    /// The embedding of the scale of guidance, for models that were distilled with guidance:
    /// [`Manifest::guidance_channels`] numbers, once for each timestep of a
    /// [`Role::TimestepProjection`].
    Guidance,
    /// A picture beside the latent, once for each batch row: [`Manifest::condition_channels`]
    /// channels. Models for inpainting have one more than the latent: the mask, then the latent of
    /// the masked image.
    Condition,
    /// Timesteps of the sampler, the last one repeated if there are fewer than the port holds.
    Timestep,
}

/// The part of an output that is an input of a later network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slice {
    /// All of it, in the same buffer: nothing is copied.
    InPlace,
    /// All of it, copied.
    Whole,
    /// The row of the guidance branch that runs, copied. The output holds
    /// [`GUIDANCE_BRANCHES`] rows, each as long as the input.
    GuidanceBranch,
    /// The row of the sampler's timestep, copied. The output holds [`Manifest::timestep_rows`]
    /// rows.
    TimestepRow {
        /// Length of a row.
        row_bytes: u64,
        /// How often the row stands in the input.
        copies: u32,
    },
}
