//! The bundle: the contract between compiler and runtime.
