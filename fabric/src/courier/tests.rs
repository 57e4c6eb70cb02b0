//! Tests of the courier over heap memory and the loopback fabric.
