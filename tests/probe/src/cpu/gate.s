# Entries from user mode to privilege level 0 (AT&T syntax): faults, interrupts, and the few
# privileged instructions that the probe needs.
#
# A call is a ud2 at a known address. An ordinary `int n` would be the usual way, but software KVM
# can't emulate it; #UD reaches us everywhere.

.set OUT_STRING, 0
.set IN_STRING, 1
.set IDLE, 2
.set WRITE_MSR, 3
.set TRIPLE_FAULT, 4
.set USER_DATA, 0x2b
.set USER_CODE, 0x33
.set USER_FLAGS, 0x3002
.set COM1, 0x3f8
.set LAPIC_EOI, 0xfee000b0

.text

# privileged_call(function: EDI, RSI, RDX) -> RAX
.globl privileged_call
privileged_call:
call_trap:
    ud2
    ret

# The frame: RIP, CS, RFLAGS, RSP, SS.
.globl invalid_opcode_entry
invalid_opcode_entry:
    cmpq $call_trap, (%rsp)
    jne fault_stub_6
    addq $2, (%rsp)
    cmp $OUT_STRING, %edi
    je out_string
    cmp $IN_STRING, %edi
    je in_string
    cmp $IDLE, %edi
    je idle
    cmp $WRITE_MSR, %edi
    je write_msr
    # A triple fault: an exception with no table to find its handler in.
    lidt empty_idt
    ud2

out_string:
    mov %rdx, %rcx
    mov $COM1, %edx
    rep outsb
    iretq

in_string:
    mov %rdx, %rcx
    mov %rsi, %rdi
    mov $COM1, %edx
    rep insb
    iretq

# An interrupt that came before is pending, and then hlt does not wait.
idle:
    sti
    hlt
    cli
    iretq

write_msr:
    mov %esi, %ecx
    mov %edx, %eax
    shr $32, %rdx
msr_access:
    wrmsr
    xor %eax, %eax
    iretq
msr_failed:
    mov $1, %eax
    iretq

.globl protection_fault_entry
protection_fault_entry:
    cmpq $msr_access, 8(%rsp)
    jne fault_stub_13
    add $8, %rsp
    movq $msr_failed, (%rsp)
    iretq

.globl interrupt_entry
interrupt_entry:
    push %rax
    mov $LAPIC_EOI, %eax
    movl $0, (%rax)
    pop %rax
.globl spurious_entry
spurious_entry:
    iretq

.balign 16
.globl fault_stubs
fault_stubs:
.macro fault_stub vector, has_code
    .balign 16
fault_stub_\vector:
    .if \has_code == 0
    push $0
    .endif
    push $\vector
    jmp fault
.endm
    fault_stub 0, 0
    fault_stub 1, 0
    fault_stub 2, 0
    fault_stub 3, 0
    fault_stub 4, 0
    fault_stub 5, 0
    fault_stub 6, 0
    fault_stub 7, 0
    fault_stub 8, 1
    fault_stub 9, 0
    fault_stub 10, 1
    fault_stub 11, 1
    fault_stub 12, 1
    fault_stub 13, 1
    fault_stub 14, 1
    fault_stub 15, 0
    fault_stub 16, 0
    fault_stub 17, 1
    fault_stub 18, 0
    fault_stub 19, 0
    fault_stub 20, 0
    fault_stub 21, 1
    fault_stub 22, 0
    fault_stub 23, 0
    fault_stub 24, 0
    fault_stub 25, 0
    fault_stub 26, 0
    fault_stub 27, 0
    fault_stub 28, 0
    fault_stub 29, 1
    fault_stub 30, 1
    fault_stub 31, 0

# Notes what happened and goes on in user mode, where the report is written at full speed.
fault:
    popq fault_record
    popq fault_record + 8
    popq fault_record + 16
    popq fault_record + 24
    mov %cr2, %rax
    mov %rax, fault_record + 32
    pushq $USER_DATA
    pushq $fault_stack_top - 8  # as after a call
    pushq $USER_FLAGS
    pushq $USER_CODE
    pushq $report_fault
    iretq

.data
.balign 8
# Vector, error code, RIP, CS, CR2.
.globl fault_record
fault_record: .fill 5, 8, 0
empty_idt: .word 0
    .quad 0
.text
