//! Tests of the core over heap memory.
