//! Which instruction sets the machine has, asked once; `VOXTIER_CPU=baseline` forces the portable paths.

use std::sync::OnceLock;

/// The instruction sets that a second, faster body of a function is compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// 256-bit integer vectors.
    pub avx2: bool,
    /// `pdep`, `tzcnt`: select in one instruction (microcoded, and slower than portable, before Zen 3).
    pub bmi2: bool,
}

impl Cpu {
    /// What this machine has.
    pub fn detected() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            Self {
                avx2: is_x86_feature_detected!("avx2"),
                bmi2: is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("avx2"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::default()
    }
}

/// What to use: what the machine has, unless the environment variable `VOXTIER_CPU` says `baseline`.
pub fn cpu() -> Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    *CPU.get_or_init(|| match std::env::var_os("VOXTIER_CPU") {
        Some(value) if value == "baseline" => Cpu::default(),
        _ => Cpu::detected(),
    })
}
