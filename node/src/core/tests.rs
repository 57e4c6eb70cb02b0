//! The core, step by step.
