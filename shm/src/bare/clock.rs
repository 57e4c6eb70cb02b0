//! The processor's cycle counter as a clock, calibrated against the system's; the system's clock where there
//! is none.
//!
//! Source: Intel SDM and AMD APM, `RDTSCP` and the invariant TSC.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "reads the cycle counter"))]

use std::time::{Duration, Instant};

/// Ticks and what one is worth. With a cycle counter two reads cost some 20 ns less than two of the system's
/// clock.
pub struct Clock {
    cycles: bool,
    began: Instant,
    ns_per_tick: f64,
}

impl Clock {
    /// Takes 30 ms, where there is a counter.
    pub fn calibrate() -> Clock {
        let mut clock = Clock { cycles: has_cycles(), began: Instant::now(), ns_per_tick: 1.0 };
        if clock.cycles {
            let (began, first) = (Instant::now(), clock.now());
            while began.elapsed() < Duration::from_millis(30) {}
            let (span, last) = (began.elapsed(), clock.now());
            clock.ns_per_tick = span.as_nanos() as f64 / (last - first) as f64;
        }
        clock
    }

    /// Ticks by now; they mean something only beside others of this clock.
    #[inline]
    pub fn now(&self) -> u64 {
        if self.cycles { cycles() } else { self.began.elapsed().as_nanos() as u64 }
    }

    /// What so many ticks are in nanoseconds.
    pub fn ns(&self, ticks: u64) -> f64 {
        ticks as f64 * self.ns_per_tick
    }

    /// How many ticks a span has.
    pub fn ticks(&self, span: Duration) -> u64 {
        (span.as_nanos() as f64 / self.ns_per_tick) as u64
    }
}

/// Whether the counter runs at one rate on all processors, and can be read in order with what comes before
/// it.
#[cfg(target_arch = "x86_64")]
fn has_cycles() -> bool {
    use core::arch::x86_64::__cpuid;
    let highest = __cpuid(0x8000_0000).eax;
    let rdtscp = highest >= 0x8000_0001 && __cpuid(0x8000_0001).edx & 1 << 27 != 0;
    let invariant = highest >= 0x8000_0007 && __cpuid(0x8000_0007).edx & 1 << 8 != 0;
    rdtscp && (invariant || cpu_says_constant())
}

/// Some virtual machines hide the bit; Linux then tells what it found out itself.
#[cfg(target_arch = "x86_64")]
fn cpu_says_constant() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("constant_tsc"))
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn cycles() -> u64 {
    let mut processor = 0;
    // SAFETY: 1. `has_cycles` found the instruction; without it this is not called. 2. `processor` is ours.
    unsafe { core::arch::x86_64::__rdtscp(&raw mut processor) }
}

#[cfg(not(target_arch = "x86_64"))]
fn has_cycles() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn cycles() -> u64 {
    0
}
