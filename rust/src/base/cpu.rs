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
                bmi2: is_x86_feature_detected!("bmi2") && !has_slow_pdep(),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::default()
    }
}

/// AMD before Zen 3 (family 19h) runs `pdep` as microcode, slower than the portable select.
#[cfg(target_arch = "x86_64")]
fn has_slow_pdep() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    let version = std::arch::x86_64::__cpuid(1).eax;
    let family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
    vendor.ecx.to_le_bytes() == *b"cAMD" && family < 0x19
}

/// What to use: what the machine has, unless the environment variable `VOXTIER_CPU` says `baseline`.
pub fn cpu() -> Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    *CPU.get_or_init(|| match std::env::var_os("VOXTIER_CPU") {
        Some(value) if value == "baseline" => Cpu::default(),
        _ => Cpu::detected(),
    })
}
