# The bare guest's disk and network card: virtio devices as they were before
# version 1.0, at I/O ports, of which only the rings are looked at. Descriptors
# and buffers stay where they are; nothing interrupts.
#
# Specification: Virtio PCI Card Specification 0.9.5.

    .set PCI_ADDRESS, 0xCF8
    .set PCI_DATA,    0xCFC
    .set PCI_FIRST,   0x80000000
    .set PCI_END,     0x80010000    # bus 0 alone
    .set PCI_STEP,    0x800         # a device, its function 0
    .set DISK_ID,     0x10011AF4    # device and vendor
    .set NETWORK_ID,  0x10001AF4
    .set DISK_PORTS,    0xC000      # where we put the registers
    .set NETWORK_PORTS, 0xC100
    .set OFFERED,      0            # registers: features
    .set ACCEPTED,     4
    .set QUEUE_PAGE,   8
    .set QUEUE_SIZE,   12
    .set QUEUE_SELECT, 14
    .set QUEUE_NOTIFY, 16
    .set STATUS,       18
    .set STATUS_DRIVER,    3        # seen, and known how to drive
    .set STATUS_DRIVER_OK, 7
    .set FLUSH_AND_WCE, 1 << 9 | 1 << 11    # the disk's cache stays as it is
    .set RING_ENTRIES, 256

# Three pages a ring: descriptors, what we offer, what the device has used.
    .set DISK_RING,    0x30000
    .set DISK_OFFER,   0x31000
    .set DISK_USED,    0x32000
    .set DISK_HEADERS, 0x33000      # type and sector, 16 bytes each
    .set DISK_RESULTS, 0x34000      # a byte each, written by the device
    .set NETWORK_RING,  0x38000
    .set NETWORK_OFFER, 0x39000
    .set NETWORK_USED,  0x3A000
    .set NO_INTERRUPT, 1
    .set NO_NOTIFY,    1
    .set HAS_NEXT,     1            # of a descriptor
    .set DEVICE_WRITES, 2
    .set NETWORK_HEADER_BYTES, 10

# Looking at the timer leaves the guest, as telling the disk does, after which
# it is looked at sooner: that takes time.
    .set SPINS_PER_LOOK, 64
    .set SPINS_PER_NOTIFY, 8

# In the control page.
    .set ELAPSED,        CONTROL + 0x10   # PM timer, at the last tick
    .set DISK_SUBMITTED, CONTROL + 0x40
    .set DISK_COMPLETED, CONTROL + 0x44
    .set DISK_FAILED,    CONTROL + 0x48
    .set FRAMES,         CONTROL + 0x4C
    .set FRAME_BYTES,    CONTROL + 0x50   # 64 bits
    .set FRAMES_POSTED,  CONTROL + 0x58
    .set DISK_CREDIT,    CONTROL + 0x60   # requests that may go now
    .set DISK_REMAINING, CONTROL + 0x64   # of the limit, without the credit
    .set DISK_REST,      CONTROL + 0x68   # of a request, in 1/PM_TIMER_HZ
    .set DISK_PLACE,     CONTROL + 0x6C
    .set BUFFER_AT,      CONTROL + 0x70
    .set FREE_SLOTS,     CONTROL + 0x74
    .set SPINS,          CONTROL + 0x78   # until the timer is looked at
    .set FREE_STACK,     CONTROL + 0x80   # 32 dwords

set_up_disk:
    pushl %esi
    pushl %edi
    movl $DISK_ID, %eax
    movl $DISK_PORTS, %ebp
    call find_device
    movl $FLUSH_AND_WCE, %ecx
    movl $DISK_RING, %eax
    call start_device
    movl $NO_INTERRUPT, (DISK_OFFER)
    # Slot n has descriptors 4n to 4n + 2: header, data, result.
    xorl %esi, %esi
1:  movl %esi, %edi
    shll $4, %edi
    leal DISK_HEADERS(%edi), %eax
    movl (disk_direction - pacer_bare_start + RUN), %ecx
    movl %ecx, (%eax)
    shll $2, %edi
    addl $DISK_RING, %edi
    leal 1(,%esi,4), %edx       # the next descriptor
    shll $16, %edx
    orl $HAS_NEXT, %edx
    movl %eax, (%edi)
    movl $16, 8(%edi)
    movl %edx, 12(%edi)
    addl $1 << 16, %edx
    cmpl $0, (disk_direction - pacer_bare_start + RUN)
    jne 2f
    orl $DEVICE_WRITES, %edx
2:  movl (disk_bytes - pacer_bare_start + RUN), %ecx
    movl %ecx, 16 + 8(%edi)
    movl %edx, 16 + 12(%edi)
    leal DISK_RESULTS(%esi), %eax
    movl %eax, 32(%edi)
    movl $1, 32 + 8(%edi)
    movl $DEVICE_WRITES, 32 + 12(%edi)
    movl %esi, FREE_STACK(,%esi,4)
    incl %esi
    cmpl (disk_depth - pacer_bare_start + RUN), %esi
    jb 1b
    movl %esi, (FREE_SLOTS)
    movl (buffer_start - pacer_bare_start + RUN), %eax
    movl %eax, (BUFFER_AT)
    movl (disk_seed - pacer_bare_start + RUN), %eax
    movl %eax, (DISK_PLACE)
    movl (disk_limit - pacer_bare_start + RUN), %eax
    cmpl $0, (disk_per_second - pacer_bare_start + RUN)
    jne 3f
    movl %eax, (DISK_CREDIT)
    xorl %eax, %eax
3:  movl %eax, (DISK_REMAINING)
    call device_ok
    popl %edi
    popl %esi
    ret

set_up_network:
    pushl %esi
    pushl %edi
    movl $NETWORK_ID, %eax
    movl $NETWORK_PORTS, %ebp
    call find_device
    xorl %ecx, %ecx
    movl $NETWORK_RING, %eax
    call start_device
    movl (network_buffers - pacer_bare_start + RUN), %eax
    xorl %esi, %esi
    movl $NETWORK_RING, %edi
1:  movl %eax, (%edi)
    movl $4096, 8(%edi)
    movl $DEVICE_WRITES, 12(%edi)
    movw %si, NETWORK_OFFER + 4(,%esi,2)
    addl $4096, %eax
    addl $16, %edi
    incl %esi
    cmpl $RING_ENTRIES, %esi
    jb 1b
    movl %esi, (FRAMES_POSTED)
    movl $(RING_ENTRIES << 16 | NO_INTERRUPT), (NETWORK_OFFER)
    call device_ok
    leal QUEUE_NOTIFY(%ebp), %edx
    xorl %eax, %eax
    outw %ax, %dx
    popl %edi
    popl %esi
    ret

# Finds the PCI function with device and vendor EAX and gives it I/O ports from
# EBP on.
find_device:
    movl %eax, %ecx
    movl $PCI_FIRST, %ebx
1:  movl %ebx, %eax
    movw $PCI_ADDRESS, %dx
    outl %eax, %dx
    movw $PCI_DATA, %dx
    inl %dx, %eax
    cmpl %ecx, %eax
    je 2f
    addl $PCI_STEP, %ebx
    cmpl $PCI_END, %ebx
    jne 1b
    jmp fail
2:  leal 0x10(%ebx), %eax       # BAR 0
    movl %ebp, %ecx
    call pci_write
    leal 4(%ebx), %eax          # command: I/O ports and bus master
    movl $5, %ecx

# ECX to the register with address EAX.
pci_write:
    movw $PCI_ADDRESS, %dx
    outl %eax, %dx
    movl %ecx, %eax
    movw $PCI_DATA, %dx
    outl %eax, %dx
    ret

# Resets the device at EBP, takes those of the features ECX that it offers, and
# gives it queue 0 at EAX.
start_device:
    pushl %eax
    leal STATUS(%ebp), %edx
    xorl %eax, %eax
    outb %al, %dx
    movb $STATUS_DRIVER, %al
    outb %al, %dx
    leal OFFERED(%ebp), %edx
    inl %dx, %eax
    andl %ecx, %eax
    leal ACCEPTED(%ebp), %edx
    outl %eax, %dx
    leal QUEUE_SELECT(%ebp), %edx
    xorl %eax, %eax
    outw %ax, %dx
    leal QUEUE_SIZE(%ebp), %edx
    inw %dx, %ax
    cmpw $RING_ENTRIES, %ax
    jne fail
    popl %eax
    shrl $12, %eax
    leal QUEUE_PAGE(%ebp), %edx
    outl %eax, %dx
    ret

device_ok:
    leal STATUS(%ebp), %edx
    movb $STATUS_DRIVER_OK, %al
    outb %al, %dx
    ret

# Says `E` and stops for good: there is no such device.
fail:
    movw $0x3f8, %dx
    movb $'E', %al
    outb %al, %dx
1:  cli
    hlt
    jmp 1b

# What is due since the last tick.
credit_disk:
    movl (ELAPSED), %eax
    mull (disk_per_second - pacer_bare_start + RUN)
    addl (DISK_REST), %eax
    adcl $0, %edx
    movl $PM_TIMER_HZ, %ecx
    divl %ecx
    movl %edx, (DISK_REST)
    cmpl (DISK_REMAINING), %eax
    jbe 1f
    movl (DISK_REMAINING), %eax
1:  subl %eax, (DISK_REMAINING)
    addl %eax, (DISK_CREDIT)
    ret

# Takes back the slots of what has ended, and fills as many as may go.
poll_disk:
    cmpl $0, (disk_depth - pacer_bare_start + RUN)
    je 9f
    pushl %esi
    pushl %edi
1:  movl (DISK_COMPLETED), %ecx
    cmpw %cx, (DISK_USED + 2)
    je 3f
    movzbl %cl, %ecx
    movl DISK_USED + 4(,%ecx,8), %eax
    shrl $2, %eax               # the slot
    cmpb $0, DISK_RESULTS(%eax)
    je 2f
    incl (DISK_FAILED)
2:  movl (FREE_SLOTS), %ecx
    movl %eax, FREE_STACK(,%ecx,4)
    incl (FREE_SLOTS)
    incl (DISK_COMPLETED)
    jmp 1b
3:  movl (DISK_SUBMITTED), %edi
4:  cmpl $0, (FREE_SLOTS)
    je 7f
    cmpl $0, (DISK_CREDIT)
    je 7f
    decl (DISK_CREDIT)
    decl (FREE_SLOTS)
    movl (FREE_SLOTS), %ecx
    movl FREE_STACK(,%ecx,4), %esi
    call next_place
    movl %esi, %ecx
    shll $4, %ecx
    movl %eax, DISK_HEADERS + 8(%ecx)
    movl %edx, DISK_HEADERS + 12(%ecx)
    shll $2, %ecx
    movl (BUFFER_AT), %eax
    movl %eax, DISK_RING + 16(%ecx)
    movl (disk_bytes - pacer_bare_start + RUN), %edx
    addl %edx, %eax
    addl %eax, %edx             # the end of the one after it
    cmpl (buffer_end - pacer_bare_start + RUN), %edx
    jbe 5f
    movl (buffer_start - pacer_bare_start + RUN), %eax
5:  movl %eax, (BUFFER_AT)
    shll $2, %esi
    movzbl (DISK_SUBMITTED), %ecx
    movw %si, DISK_OFFER + 4(,%ecx,2)
    incl (DISK_SUBMITTED)
    jmp 4b
7:  movl (DISK_SUBMITTED), %eax
    cmpl %edi, %eax
    je 8f
    xchgw %ax, (DISK_OFFER + 2) # and a barrier: the flag is read after it
    testw $NO_NOTIFY, (DISK_USED)
    jnz 8f
    subl $SPINS_PER_NOTIFY, (SPINS)
    movw $DISK_PORTS + QUEUE_NOTIFY, %dx
    xorl %eax, %eax
    outw %ax, %dx
8:  popl %edi
    popl %esi
9:  ret

# The sector of the next request, in EDX:EAX. ECX is free.
next_place:
    cmpl $0, (disk_seed - pacer_bare_start + RUN)
    jne 2f
    movl (DISK_PLACE), %eax
    leal 1(%eax), %ecx
    cmpl (disk_places - pacer_bare_start + RUN), %ecx
    jb 1f
    xorl %ecx, %ecx
1:  movl %ecx, (DISK_PLACE)
    jmp 3f
2:  imull $1664525, (DISK_PLACE), %eax  # Numerical Recipes' generator
    addl $1013904223, %eax
    movl %eax, (DISK_PLACE)
    mull (disk_places - pacer_bare_start + RUN)
    movl %edx, %eax
3:  movl (disk_bytes - pacer_bare_start + RUN), %ecx
    shrl $9, %ecx
    mull %ecx
    ret

# Counts the frames that have come and offers their buffers again.
poll_network:
    cmpl $0, (network_buffers - pacer_bare_start + RUN)
    je 9f
    movl (FRAMES_POSTED), %edx
1:  movl (FRAMES), %ecx
    cmpw %cx, (NETWORK_USED + 2)
    je 2f
    movzbl %cl, %ecx
    movl NETWORK_USED + 8(,%ecx,8), %eax
    subl $NETWORK_HEADER_BYTES, %eax
    addl %eax, (FRAME_BYTES)
    adcl $0, (FRAME_BYTES + 4)
    movl NETWORK_USED + 4(,%ecx,8), %eax
    movzbl (FRAMES_POSTED), %ecx
    movw %ax, NETWORK_OFFER + 4(,%ecx,2)
    incl (FRAMES_POSTED)
    incl (FRAMES)
    jmp 1b
2:  movl (FRAMES_POSTED), %eax
    cmpl %edx, %eax
    je 9f
    xchgw %ax, (NETWORK_OFFER + 2)
    testw $NO_NOTIFY, (NETWORK_USED)
    jnz 9f
    movw $NETWORK_PORTS + QUEUE_NOTIFY, %dx
    xorl %eax, %eax
    outw %ax, %dx
9:  ret
