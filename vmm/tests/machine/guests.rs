//! Guests of a few instructions, assembled with the test and wrapped into ELF files.

use std::arch::global_asm;

/// Guest-physical address of the first instruction.
const LOAD_ADDRESS: u64 = 0x10_0000;
/// Type of the ELF note with the PVH entry (Xen, `XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_NOTE: u32 = 18;

macro_rules! guest {
    ($name:ident, $begin:ident, $end:ident, $code:literal) => {
        global_asm!(concat!(
            ".pushsection .rodata\n.globl ",
            stringify!($begin),
            "\n.globl ",
            stringify!($end),
            "\n",
            stringify!($begin),
            ":\n",
            $code,
            "\n",
            stringify!($end),
            ":\n.popsection"
        ));
        unsafe extern "C" {
            static $begin: u8;
            static $end: u8;
        }
        /// The guest's code.
        pub fn $name() -> Vec<u8> {
            let begin = &raw const $begin;
            let end = &raw const $end;
            // SAFETY: both labels stand in the same read-only section, `end` behind `begin`, with
            // nothing but the guest's bytes between them.
            unsafe { std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin)) }.to_vec()
        }
    };
}

guest!(
    says_hello_and_powers_off,
    hello_begin,
    hello_end,
    "
    .code64
    mov dx, 0x3f8
    mov al, 'h'
    out dx, al
    mov al, 'i'
    out dx, al
    mov dx, 0x604
    mov ax, 0x3400
    out dx, ax
1:  hlt
    jmp 1b
"
);

guest!(
    resets_through_the_keyboard_controller,
    i8042_begin,
    i8042_end,
    "
    .code64
    mov al, 0xfe
    out 0x64, al
1:  hlt
    jmp 1b
"
);

guest!(
    resets_through_acpi,
    acpi_begin,
    acpi_end,
    "
    .code64
    mov dx, 0x606
    mov al, 1
    out dx, al
1:  hlt
    jmp 1b
"
);

guest!(
    triple_faults,
    fault_begin,
    fault_end,
    "
    .code64
    ud2
"
);

guest!(
    spins,
    spin_begin,
    spin_end,
    "
    .code64
1:  jmp 1b
"
);

// A driver that tells the device in the first place that it is there, and does no more.
guest!(
    acknowledges_its_disk,
    acknowledges_begin,
    acknowledges_end,
    "
    .code64
    mov ebx, 0xd0000070
    mov eax, 1
    mov [rbx], eax
1:  jmp 1b
"
);

// Maps 4 GiB to 4 GiB + 2 MiB, writes there, and says `y` if it reads the same back.
guest!(
    uses_memory_above_four_gib,
    high_begin,
    high_end,
    "
    .code64
    mov rbx, 0xa020
    mov eax, 0xf003
    mov [rbx], rax
    mov rax, 0x100000083
    mov rbx, 0xf000
    mov [rbx], rax
    mov rbx, 0x100000000
    mov eax, 0x12345678
    mov [rbx], eax
    xor ecx, ecx
    mov ecx, [rbx]
    mov dx, 0x3f8
    cmp eax, ecx
    mov al, 'n'
    jne 1f
    mov al, 'y'
1:  out dx, al
    mov dx, 0x604
    mov ax, 0x3400
    out dx, ax
2:  hlt
    jmp 2b
"
);

// Sends back what is typed, one byte more in value, until it gets `q`.
guest!(
    echoes_the_serial_line,
    echo_begin,
    echo_end,
    "
    .code64
1:  mov dx, 0x3fd
    in al, dx
    test al, 1
    jz 1b
    mov dx, 0x3f8
    in al, dx
    cmp al, 'q'
    je 2f
    inc al
    out dx, al
    jmp 1b
2:  mov dx, 0x604
    mov ax, 0x3400
    out dx, ax
3:  hlt
    jmp 3b
"
);

// In 32-bit protected mode: the magic number of hvm_start_info is at EBX.
guest!(
    finds_its_pvh_start_info,
    pvh_begin,
    pvh_end,
    "
    .code32
    mov dx, 0x3f8
    cmp dword ptr [ebx], 0x336ec578
    mov al, 'n'
    jne 1f
    mov al, 'p'
1:  out dx, al
    mov dx, 0x604
    mov ax, 0x3400
    out dx, ax
2:  hlt
    jmp 2b
    .code64
"
);

/// An ELF executable with `code` as its one segment and, if `pvh` is set, a PVH entry.
pub fn elf(code: &[u8], pvh: bool) -> Vec<u8> {
    const HEADER: usize = 64;
    const SEGMENT: usize = 56;
    let note = match pvh {
        true => {
            let mut note = Vec::new();
            note.extend_from_slice(&4u32.to_le_bytes());
            note.extend_from_slice(&8u32.to_le_bytes());
            note.extend_from_slice(&PVH_NOTE.to_le_bytes());
            note.extend_from_slice(b"Xen\0");
            note.extend_from_slice(&LOAD_ADDRESS.to_le_bytes());
            note
        }
        false => Vec::new(),
    };
    let segments = 1 + usize::from(pvh);
    let code_at = HEADER + SEGMENT * segments;
    let note_at = code_at + code.len();

    let mut elf = Vec::new();
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01");
    elf.resize(16, 0);
    elf.extend_from_slice(&2u16.to_le_bytes());
    elf.extend_from_slice(&62u16.to_le_bytes());
    elf.extend_from_slice(&1u32.to_le_bytes());
    elf.extend_from_slice(&LOAD_ADDRESS.to_le_bytes());
    elf.extend_from_slice(&(HEADER as u64).to_le_bytes());
    elf.extend_from_slice(&0u64.to_le_bytes());
    elf.extend_from_slice(&0u32.to_le_bytes());
    for half in [HEADER, SEGMENT, segments, 0, 0, 0] {
        elf.extend_from_slice(&(half as u16).to_le_bytes());
    }
    let mut segment = |kind: u32, at: usize, address: u64, length: usize| {
        elf.extend_from_slice(&kind.to_le_bytes());
        elf.extend_from_slice(&5u32.to_le_bytes());
        for word in [at as u64, address, address, length as u64, length as u64, 4] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
    };
    segment(1, code_at, LOAD_ADDRESS, code.len());
    if pvh {
        segment(4, note_at, 0, note.len());
    }
    elf.extend_from_slice(code);
    elf.extend_from_slice(&note);
    elf
}
