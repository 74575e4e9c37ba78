//! The ahead-of-time compiler.
