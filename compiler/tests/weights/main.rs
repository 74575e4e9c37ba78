//! The checkpoint readers, on the model that ships with the project and on made-up files.

mod bundles;
mod family;
mod fixtures;
mod formats;
mod hostile;
mod requirements;
mod sd21;
