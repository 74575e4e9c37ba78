//! The networks of Stable Diffusion 1.x and 2.x as graphs.
//!
//! [`text_encoder`], [`unet`], [`vae_decoder`], [`vae_encoder`], [`tiny_decoder`] and
//! [`tiny_encoder`] turn a [`ModelConfig`] into a typed static graph over the ops of `kiln-ir`. The
//! graphs are plain: every bias, activation, residual and concatenation is an op of its own. The compiler's passes fuse, merge and hoist.
//! Constants are named by their keys in Stability's single-file checkpoint layout
//! (`model.diffusion_model.*`, `first_stage_model.*`, `cond_stage_model.*`). The readers of weights
//! translate other layouts. A [`ModelConfig`] is read from a description in `graphs/models/`.
//!
//! This crate knows no values of weights, files, devices or samplers.
//!
//! Source: github.com/Stability-AI/stablediffusion (structure), github.com/mlfoundations/open_clip
//! and github.com/openai/CLIP (text towers).
#![forbid(unsafe_code)]

mod blocks;
mod clip_text;
pub mod config;
pub mod schedule;
mod tiny;
mod unet;
mod vae_decoder;
mod vae_encoder;

pub use clip_text::text_encoder;
pub use config::{ModelConfig, TextConfig, TextTower, UnetConfig, VaeConfig, model, models};
pub use tiny::{TINY_PREFIX, TinyConfig, tiny_decoder, tiny_encoder};
pub use unet::{unet, unet_with_deep};
pub use vae_decoder::vae_decoder;
pub use vae_encoder::vae_encoder;
