# The bare guest: firmware of its own that fills memory and then dirties it.
#
# Assembled into the test crate, with `bare/pattern.s` and the drivers in
# `bare/devices.s` behind it; `bare.rs` puts the bytes between
# `pacer_bare_start` and `pacer_bare_end` at the bottom of a 64 KiB BIOS image,
# patches the parameters and adds the reset vector. The image appears at ROM
# and copies itself to RUN, so an address is its distance from the start plus
# one of these: no relocation is left for the linker.

    .section .rodata.pacer_bare, "a"
    .globl pacer_bare_start
    .set ROM,      0xF0000
    .set RUN,      0x10000      # where it runs: some KVMs crawl in a ROM
    .set CONTROL,  0x8000       # magic, position, round, ticks; devices.s has more
    .set IDT,      0x6000
    .set STACK,    0x7000       # grows down, into the IDT's page
    .set BASE,     0x1000000    # 16 MiB: the working set, then the filler
    .set DMA,      0x5000       # fw_cfg's request: control, length, address
    .set DMA_READ,   2
    .set DMA_SELECT, 8
    .set DIRECTORY,  0x20000    # fw_cfg's list of files
    .set DIRECTORY_BYTES, 0x4000
    .set MAGIC,    0x52434150
    .set PM_BASE,  0x600        # where we put the PIIX4's ACPI registers
    .set PM_TIMER, PM_BASE + 8
    .set PM_TIMER_HZ, 3579545
    .set PIT_DIVISOR, 1193      # 1193182 Hz / 1000 a second

    .balign 16
pacer_bare_start:
pages_total:      .long 0       # working set and filler
pages_working:    .long 0
pages_per_second: .long 0       # 0: as fast as the CPU goes
pages_filled:     .long 0       # pages_total and the disk's buffer behind it
devices:          .long 0       # whether there is any
spins:            .long 0       # whether it never sleeps, with devices
disk_depth:       .long 0       # requests under way; 0: no disk
disk_direction:   .long 0       # virtio-blk's type: 0 reads, 1 writes
disk_bytes:       .long 0       # of a request
disk_per_second:  .long 0       # 0: as fast as it goes
disk_limit:       .long 0       # requests in all
disk_places:      .long 0       # of this many bytes, that are walked
disk_seed:        .long 0       # 0: one place after the other
buffer_start:     .long 0       # what the disk reads into or writes from
buffer_end:       .long 0
network_buffers:  .long 0       # a page each; 0: no network
pattern_seed:     .long 0       # 0: the working set, page after page
pattern_next:     .long 0       # bytes from the first phase to that after the second
pattern_phases:   .fill 16, 4, 0       # see pattern.s

    .org pacer_bare_start + 0x90
    .code16
    cli
    cld
    lgdtl %cs:(gdt_pointer - pacer_bare_start)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $(protected - pacer_bare_start + ROM)

    .code32
protected:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $STACK, %esp
    inb $0x92, %al              # A20 on
    orb $2, %al
    outb %al, $0x92

    movl $ROM, %esi             # on in RAM
    movl $RUN, %edi
    movl $(pacer_bare_end - pacer_bare_start), %ecx
    rep movsb
    ljmpl $0x08, $(in_ram - pacer_bare_start + RUN)
in_ram:

# The content comes from QEMU by fw_cfg DMA, as often as it takes: some KVMs
# need a microsecond for an instruction, too slow to compute it here.
    movl $(0x19 << 16 | DMA_SELECT | DMA_READ), %eax
    movl $DIRECTORY_BYTES, %ecx
    movl $DIRECTORY, %edi
    call dma
    movl $DIRECTORY + 4 - 64, %esi
1:  addl $64, %esi
    cmpl $0x2F74706F, 8(%esi)   # "opt/": the first is ours
    jne 1b
    movzwl 4(%esi), %eax
    xchgb %al, %ah
    shll $16, %eax
    orl $(DMA_SELECT | DMA_READ), %eax
    movl (%esi), %ebp
    bswapl %ebp                 # bytes of the content
    movl $BASE, %edi
    movl (pages_filled - pacer_bare_start + RUN), %ebx
    shll $12, %ebx              # bytes left to fill
2:  movl %ebp, %ecx
    cmpl %ebx, %ecx
    jbe 3f
    movl %ebx, %ecx
3:  call dma
    addl %ecx, %edi
    subl %ecx, %ebx
    jnz 2b

# Page n gets n * odd ^ constant at offset 8, so that no two are alike.
    movl $BASE + 8, %edi
    xorl %esi, %esi
4:  imull $0x9E3779B1, %esi, %eax
    xorl $0x5BD1E995, %eax
    movl %eax, (%edi)
    addl $4096, %edi
    incl %esi
    cmpl (pages_total - pacer_bare_start + RUN), %esi
    jb 4b

# Round 0 over the working set, then the control page, then say so.
    xorl %edi, %edi
    xorl %esi, %esi
1:  call write_page
    testl %edi, %edi
    jz 1b
    movl $0, (CONTROL + 12)
    call set_up_pattern
    movl $MAGIC, (CONTROL)
    call set_up_ticks
    cmpl $0, (disk_depth - pacer_bare_start + RUN)
    je 1f
    call set_up_disk
1:  cmpl $0, (network_buffers - pacer_bare_start + RUN)
    je 1f
    call set_up_network
1:  movw $0x3f8, %dx
    movb $'R', %al
    outb %al, %dx
    cmpl $0, (devices - pacer_bare_start + RUN)
    jne paced
    cmpl $0, (pages_per_second - pacer_bare_start + RUN)
    jne paced

unpaced:
    call write_page
    jmp unpaced

# The PIT only wakes us; what is due comes from the ACPI PM timer, so that a
# lost tick loses no page. Both stand still while the guest is stopped.
# Interrupts are on in `hlt` alone and come back here without IRET, which a KVM
# that emulates protected mode does not know. With devices that leave no time to
# sleep, the timer is looked at now and then instead.
paced:
    movw $PM_TIMER, %dx
    inl %dx, %eax
    movl %eax, %ebx             # the timer when we last looked
    xorl %ebp, %ebp             # rest of a page, in 1/PM_TIMER_HZ
    cmpl $0, (devices - pacer_bare_start + RUN)
    jne 4f
1:  sti
    hlt
    jmp 1b
tick:
    addl $12, %esp
    movb $0x20, %al
    outb %al, $0x20
    incl (CONTROL + 12)
    testl $0x3F, (CONTROL + 12) # some sixteen times a second
    jnz look
    movw $PM_BASE, %dx
    inw %dx, %ax
    testb $1, %ah
    jnz end_itself
look:
    movw $PM_TIMER, %dx
    inl %dx, %eax
    movl %eax, %ecx
    subl %ebx, %eax
    movl %ecx, %ebx
    andl $0xFFFFFF, %eax        # the timer has 24 bits: 4.7 s
    movl %eax, (ELAPSED)
    mull (PACE)
    addl %ebp, %eax
    adcl $0, %edx
    movl $PM_TIMER_HZ, %ecx
    divl %ecx
    movl %edx, %ebp
    movl %eax, %ecx
    jecxz 3f
2:  call write_page
    decl %ecx
    jnz 2b
3:  cmpl $0, (devices - pacer_bare_start + RUN)
    je 1b
    call credit_disk
4:  call poll_disk
    call poll_network
    cmpl $0, (spins - pacer_bare_start + RUN)
    je 1b
    cmpl $0, (pages_per_second - pacer_bare_start + RUN)
    jne 5f
    call write_page
5:  decl (SPINS)
    jns 4b
    movl $SPINS_PER_LOOK, (SPINS)
    jmp look

# Writes page ESI of round EDI, or from round 1 on the page that the pattern
# says, and moves on. The position (round's low 12 bits
# and page in one dword) changes in one store, so whoever looks between two
# instructions sees it whole; the round is stored after it.
write_page:
    testl %edi, %edi
    jz 3f
    cmpl $0, (pattern_seed - pacer_bare_start + RUN)
    je 3f
    call write_drawn
    jmp 4f
3:  movl %esi, %edx
    shll $12, %edx
    addl $BASE, %edx
    movl %edi, (%edx)
    imull $0x85EBCA6B, %esi, %eax
    xorl $0x2545F491, %eax
    xorl %edi, %eax
    movl %eax, 4(%edx)
4:  incl %esi
    cmpl (pages_working - pacer_bare_start + RUN), %esi
    jb 1f
    xorl %esi, %esi
    incl %edi
1:  movl %edi, %eax
    shll $20, %eax
    orl %esi, %eax
    movl %eax, (CONTROL + 4)
    movl %edi, (CONTROL + 8)
    ret

# Reads ECX bytes of fw_cfg to EDI; EAX is the request. Keeps all but EDX.
# fw_cfg is big-endian; the write of the low half starts the transfer, which
# has ended when the instruction has.
dma:
    pushl %eax
    bswapl %eax
    movl %eax, (DMA)
    movl %ecx, %eax
    bswapl %eax
    movl %eax, (DMA + 4)
    movl $0, (DMA + 8)
    movl %edi, %eax
    bswapl %eax
    movl %eax, (DMA + 12)
    movw $0x514, %dx
    xorl %eax, %eax
    outl %eax, %dx
    movw $0x518, %dx
    movl $DMA, %eax
    bswapl %eax
    outl %eax, %dx
    popl %eax
    ret

# The local APIC lets the PIC through (as a BIOS sets it); the
# PIC at vectors 0x20 and 0x28, all masked but IRQ 0; PIT channel 0 periodic.
set_up_ticks:
    pushl %edi
    movl $IDT, %edi
    movl $0x50, %ecx            # 0x28 gates of two dwords
    xorl %eax, %eax
    rep stosl
    movl $0x00080000 + (tick - pacer_bare_start), (IDT + 0x20 * 8)
    movl $0x00018E00, (IDT + 0x20 * 8 + 4)
    movl $0x00080000 + (tick - pacer_bare_start), (IDT + 0x27 * 8)
    movl $0x00018E00, (IDT + 0x27 * 8 + 4)
    lidtl (idt_pointer - pacer_bare_start + RUN)
    orl $0x100, 0xFEE000F0      # spurious vector register: APIC on
    movl $0x700, 0xFEE00350     # LINT0: ExtINT, not masked
    movb $0x11, %al
    outb %al, $0x20
    outb %al, $0xA0
    movb $0x20, %al
    outb %al, $0x21
    movb $0x28, %al
    outb %al, $0xA1
    movb $0x04, %al
    outb %al, $0x21
    movb $0x02, %al
    outb %al, $0xA1
    movb $0x01, %al
    outb %al, $0x21
    outb %al, $0xA1
    movb $0xFE, %al
    outb %al, $0x21
    movb $0xFF, %al
    outb %al, $0xA1
    movb $0x34, %al
    outb %al, $0x43
    movb $(PIT_DIVISOR & 0xFF), %al
    outb %al, $0x40
    movb $(PIT_DIVISOR >> 8), %al
    outb %al, $0x40
    movl $0x80000B40, %eax      # PCI 0:1.3 register 0x40: ACPI registers at
    movw $0xCF8, %dx
    outl %eax, %dx
    movl $(PM_BASE | 1), %eax
    movw $0xCFC, %dx
    outl %eax, %dx
    movl $0x80000B80, %eax      # register 0x80: and on
    movw $0xCF8, %dx
    outl %eax, %dx
    movb $1, %al
    movw $0xCFC, %dx
    outb %al, %dx
    movw $(PM_BASE + 2), %dx    # the power button is heard, as its bit alone
    movw $0x100, %ax
    outw %ax, %dx
    popl %edi
    ret

# The power button (QMP's system_powerdown): it says that it has panicked, if there
# is a pvpanic device to hear it, and switches itself off.
end_itself:
    movw $0x505, %dx
    movb $1, %al
    outb %al, %dx
    movw $(PM_BASE + 4), %dx
    movw $0x2000, %ax           # SLP_EN, and 0 as the type: S5
    outw %ax, %dx
1:  hlt
    jmp 1b

    .balign 8
gdt:                            # marked accessed: the CPU cannot write to ROM
    .quad 0
    .quad 0x00CF9B000000FFFF    # code, flat
    .quad 0x00CF93000000FFFF    # data, flat
gdt_pointer:
    .word 23
    .long gdt - pacer_bare_start + ROM
idt_pointer:
    .word 0x28 * 8 - 1
    .long IDT
