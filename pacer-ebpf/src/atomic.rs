//! Atomic operations on words of a map that several CPUs change at once. The
//! BPF machine has them (Linux 5.12), Rust's `core` does not offer them for it.

#[cfg(target_arch = "bpf")]
use core::arch::asm;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::{AtomicU64, Ordering};

/// Sets the bits of `bits` in the word.
///
/// # Safety
///
/// `word` is a valid word that other programs change atomically only.
#[inline(always)]
pub(crate) unsafe fn or(word: *mut u64, bits: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's word.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) |= {bits}", word = in(reg) word, bits = in(reg) bits);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's word.
    unsafe { AtomicU64::from_ptr(word) }.fetch_or(bits, Ordering::Relaxed);
}

/// Adds `value` to the word, around the end.
///
/// # Safety
///
/// As [`or`].
#[inline(always)]
pub(crate) unsafe fn add(word: *mut u64, value: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's word.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's word.
    unsafe { AtomicU64::from_ptr(word) }.fetch_add(value, Ordering::Relaxed);
}

/// Puts `value` into the word and returns what was there.
///
/// # Safety
///
/// As [`or`].
#[inline(always)]
pub(crate) unsafe fn exchange(word: *mut u64, value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: the caller's word.
        unsafe {
            asm!("{value} = xchg_64({word} + 0, {value})", word = in(reg) word, value = inout(reg) value);
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's word.
    unsafe { AtomicU64::from_ptr(word) }.swap(value, Ordering::Relaxed)
}
