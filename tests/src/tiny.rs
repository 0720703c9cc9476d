//! Kernels of a few dozen bytes: ELF files made here, for tests and benchmarks that need a guest
//! but no Linux.
//!
//! The code means the same in 32-bit protected mode and in 64-bit mode, because the entry point
//! of the ELF header and the one of its PVH note are the same.

/// Where the code is loaded, in guest memory.
const LOAD_ADDRESS: u32 = 0x10_0000;

/// Offset of the code in the file.
const CODE_OFFSET: usize = 0x1000;

/// Writes one byte, `!`, to the serial port as soon as it can, then halts for good. It does not
/// hear the power button.
pub fn one_byte() -> Vec<u8> {
    elf(&[
        0xfa, // cli
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, b'!', // mov al, '!'
        0xee, // out dx, al
        0xf4, // halt: hlt
        0xeb, 0xfd, // jmp halt
    ])
}

/// Prints `tiny: ready`, then sends back every byte that comes in on the serial port; after a `q`
/// it crashes (an exception without an interrupt table: a triple fault).
pub fn echo() -> Vec<u8> {
    let message = b"tiny: ready\r\n\0";
    let mut code = vec![
        0xfa, // cli
        0xbe, 0, 0, 0, 0, // mov esi, message
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz poll
        0xee, // out dx, al
        0xeb, 0xf8, // jmp next
        0x66, 0xba, 0xfd, 0x03, // poll: mov dx, 0x3fd
        0xec, // in al, dx
        0xa8, 0x01, // test al, 1 (data ready)
        0x74, 0xf7, // jz poll
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0xee, // out dx, al
        0x3c, b'q', // cmp al, 'q'
        0x75, 0xed, // jne poll
        0x0f, 0x0b, // ud2, without an interrupt table
    ];
    let message_at = LOAD_ADDRESS + u32::try_from(code.len()).expect("a few bytes");
    code[2..6].copy_from_slice(&message_at.to_le_bytes());
    code.extend(message);
    elf(&code)
}

/// An ELF executable with this code at its entry point, and a PVH note that names the same.
fn elf(code: &[u8]) -> Vec<u8> {
    let entry = u64::from(LOAD_ADDRESS);
    let header_size: u16 = 64;
    let program_header_size: u16 = 56;

    let mut note = Vec::new();
    note.extend(4u32.to_le_bytes()); // length of the name
    note.extend(8u32.to_le_bytes()); // length of the value
    note.extend(18u32.to_le_bytes()); // XEN_ELFNOTE_PHYS32_ENTRY
    note.extend(b"Xen\0");
    note.extend(entry.to_le_bytes());

    let note_offset = u64::from(header_size + 2 * program_header_size);
    let mut file = Vec::new();
    file.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(2u16.to_le_bytes()); // ET_EXEC
    file.extend(62u16.to_le_bytes()); // EM_X86_64
    file.extend(1u32.to_le_bytes());
    file.extend(entry.to_le_bytes());
    file.extend(u64::from(header_size).to_le_bytes()); // program headers
    file.extend(0u64.to_le_bytes()); // no section headers
    file.extend(0u32.to_le_bytes());
    for half in [header_size, program_header_size, 2, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let code_length = code.len() as u64;
    let note_length = note.len() as u64;
    program_header(
        &mut file,
        1,
        5,
        CODE_OFFSET as u64,
        entry,
        code_length,
        0x1000,
    ); // PT_LOAD
    program_header(&mut file, 4, 4, note_offset, 0, note_length, 4); // PT_NOTE
    file.extend(note);
    file.resize(CODE_OFFSET, 0);
    file.extend(code);
    file
}

fn program_header(
    file: &mut Vec<u8>,
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    length: u64,
    alignment: u64,
) {
    file.extend(kind.to_le_bytes());
    file.extend(flags.to_le_bytes());
    for field in [offset, address, address, length, length, alignment] {
        file.extend(field.to_le_bytes());
    }
}
