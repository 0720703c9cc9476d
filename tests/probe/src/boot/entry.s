# From the first instruction to user mode (AT&T syntax).
#
# What runs here runs at privilege level 0, which software KVM emulates at a microsecond an
# instruction. So there is as little of it as can be: tables that could be computed are data in
# the image, and everything else is done in user mode.

.set CR0, 0x80010033         # PG WP NE ET MP PE
.set CR4, 0x00000620         # OSXMMEXCPT OSFXSR PAE
.set MSR_EFER, 0xc0000080
.set EFER, 0x00000100        # LME
.set KERNEL_CODE, 0x10       # where the boot protocol has its code segment too
.set TASK, 0x40
.set USER_DATA, 0x2b
.set USER_CODE, 0x33
.set USER_FLAGS, 0x3002      # IOPL 3: user mode may use I/O ports; interrupts off
.set PROTOCOL_LINUX, 1
.set PROTOCOL_PVH, 2

.section .text.boot, "ax"

# 64-bit Linux boot protocol: long mode, paging on, boot_params at RSI.
.code64
.globl _start
_start:
    mov %rsi, boot_information
    movl $PROTOCOL_LINUX, boot_protocol
    mov $page_map_level_4, %eax
    mov %rax, %cr3
    mov $CR4, %eax
    mov %rax, %cr4
    mov $CR0, %eax
    mov %rax, %cr0
    lgdt gdt_pointer
long_mode:
    rdtsc
    mov %eax, boot_tsc
    mov %edx, boot_tsc + 4
    lidt idt_pointer
    # The descriptor of the task state segment holds its address in pieces. All of ours are below
    # 16 MiB, so that only the lowest is not zero.
    mov $task_state, %eax
    mov %ax, gdt + TASK + 2
    shr $16, %eax
    mov %al, gdt + TASK + 4
    mov $TASK, %eax
    ltr %ax
    mov $USER_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    pushq $USER_DATA
    pushq $user_stack_top - 8   # as after a call
    pushq $USER_FLAGS
    pushq $USER_CODE
    pushq $probe_main
    iretq

# PVH: protected mode, paging off, hvm_start_info at EBX.
.code32
pvh_start:
    mov %ebx, boot_information
    movl $PROTOCOL_PVH, boot_protocol
    mov $CR4, %eax
    mov %eax, %cr4
    mov $page_map_level_4, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    mov $EFER, %eax
    xor %edx, %edx
    wrmsr
    mov $CR0, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    mov $kernel_stack_top, %esp
    ljmp $KERNEL_CODE, $long_mode
.code64

# XEN_ELFNOTE_PHYS32_ENTRY
.section .note.pvh, "a", @note
.balign 4
    .long 4
    .long 8
    .long 18
    .asciz "Xen"
    .quad pvh_start

.section .data, "aw"
.balign 8
.globl boot_information, boot_tsc, boot_protocol
boot_information: .quad 0
boot_tsc: .quad 0
boot_protocol: .long 0

# The selectors are those of Linux.
.balign 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    # 0x08 kernel code, 32 bits
    .quad 0x00af9b000000ffff    # 0x10 kernel code
    .quad 0x00cf93000000ffff    # 0x18 kernel data
    .quad 0x00cffb000000ffff    # 0x20 user code, 32 bits
    .quad 0x00cff3000000ffff    # 0x28 user data
    .quad 0x00affb000000ffff    # 0x30 user code
    .quad 0
    .quad 0x0000890000000168    # 0x40 task state segment, in two entries
    .quad 0
gdt_pointer:
    .word . - gdt - 1
    .quad gdt
.balign 8
idt_pointer:
    .word 64 * 16 - 1
    .quad interrupt_table

# Of it are used the stack for level 0 and the bitmap of I/O ports, which grants the first 2048 to
# user mode: software KVM heeds the bitmap, but not IOPL.
.balign 16
task_state:
    .long 0
    .quad kernel_stack_top
    .fill 90, 1, 0
    .word 0x68
    .fill 256, 1, 0
    .byte 0xff

# The first 4 GiB, one to one, in pages of 2 MiB, all for user mode; accessed and dirty already, so
# that the CPU does not have to write that down. What is above 4 GiB is mapped by memory::high,
# if there is any.
.section .tables, "aw"
.balign 4096
page_map_level_4:
    .quad page_pointers + 0x27
    .fill 511, 8, 0
.globl page_pointers
page_pointers:
    .quad page_directories + 0x0027
    .quad page_directories + 0x1027
    .quad page_directories + 0x2027
    .quad page_directories + 0x3027
    .fill 508, 8, 0
page_directories:
    .set page, 0
    .rept 2048
    .quad (page << 21) | 0xe7
    .set page, page + 1
    .endr

.section .bss, "aw", @nobits
.balign 16
.globl interrupt_table
interrupt_table:
    .skip 64 * 16
    .skip 0x1000
kernel_stack_top:
.globl fault_stack_top
    .skip 0x4000
fault_stack_top:
    .skip 0x20000
user_stack_top:
.text
