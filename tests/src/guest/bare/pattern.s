# The bare guest's patterns: which page is written next, and how fast, in two
# phases of so many writes each. `pattern.rs` makes the parameters and knows
# the same sequence.

# A phase's parameters, in its order.
    .set PHASE_WRITES,   0          # before the next phase
    .set PHASE_PACE,     4          # pages a second, never 0
    .set PHASE_FIRST,    8          # page of the working set
    .set PHASE_PAGES,    12
    .set PHASE_RANDOM,   16         # 0: one page after the other
    .set PHASE_HOT,      20         # pages at its beginning
    .set PHASE_SHARE,    24         # of the writes go there, of 2^32
    .set PHASE_CURSOR,   28         # the next page, where they follow each other
    .set PHASE_BYTES,    32

# In the control page, which is written with each page anyway.
    .set PACE,       CONTROL + 0x100
    .set DRAWN,      CONTROL + 0x104    # the generator's state
    .set STAMP,      CONTROL + 0x108    # writes since round 0
    .set PHASE,      CONTROL + 0x10C    # address of the phase's parameters
    .set PHASE_LEFT, CONTROL + 0x110    # writes
    .set PHASES,     CONTROL + 0x120    # the parameters

set_up_pattern:
    pushl %esi
    pushl %edi
    movl (pages_per_second - pacer_bare_start + RUN), %eax
    movl %eax, (PACE)
    movl $0, (STAMP)
    movl (pattern_seed - pacer_bare_start + RUN), %eax
    movl %eax, (DRAWN)
    movl $(pattern_phases - pacer_bare_start + RUN), %esi
    movl $PHASES, %edi
    movl $(2 * PHASE_BYTES / 4), %ecx
    rep movsl
    testl %eax, %eax
    jz 1f
    movl $PHASES, %eax
    call begin_phase
1:  popl %edi
    popl %esi
    ret

# The phase at EAX begins.
begin_phase:
    movl %eax, (PHASE)
    movl PHASE_PACE(%eax), %edx
    movl %edx, (PACE)
    movl PHASE_WRITES(%eax), %edx
    movl %edx, (PHASE_LEFT)
    ret

# Writes the page that comes next: its stamp, and its mark of it. Changes EAX
# and EDX. At the end of a phase ECX and EBP, the pages that are due by the old
# pace and the rest of one, are let go.
write_drawn:
    pushl %ebx
    pushl %ecx
    movl (PHASE), %ebx
    cmpl $0, PHASE_RANDOM(%ebx)
    jne 2f
    movl PHASE_CURSOR(%ebx), %eax
    leal 1(%eax), %edx
    cmpl PHASE_PAGES(%ebx), %edx
    jb 1f
    xorl %edx, %edx
1:  movl %edx, PHASE_CURSOR(%ebx)
    jmp 4f
2:  call draw
    movl PHASE_HOT(%ebx), %ecx
    cmpl PHASE_SHARE(%ebx), %eax
    jb 3f
    call draw
    movl PHASE_PAGES(%ebx), %edx
    subl %ecx, %edx
    mull %edx
    leal (%edx,%ecx), %eax
    jmp 4f
3:  call draw
    mull %ecx
    movl %edx, %eax
4:  addl PHASE_FIRST(%ebx), %eax
    movl %eax, %edx
    shll $12, %edx
    addl $BASE, %edx
    movl (STAMP), %ecx
    incl %ecx
    movl %ecx, (%edx)
    imull $0x85EBCA6B, %eax, %eax
    xorl $0x2545F491, %eax
    xorl %ecx, %eax
    movl %eax, 4(%edx)
    movl %ecx, (STAMP)
    decl (PHASE_LEFT)
    jnz 6f
    movl $(PHASES + PHASE_BYTES), %eax
    cmpl $PHASES, %ebx
    je 5f
    movl (pattern_next - pacer_bare_start + RUN), %eax
    addl $PHASES, %eax
5:  call begin_phase
    movl $1, (%esp)
    xorl %ebp, %ebp
6:  popl %ecx
    popl %ebx
    ret

# EAX: the next 32 bits of a linear congruential generator, the high ones good
# (Numerical Recipes).
draw:
    imull $1664525, (DRAWN), %eax
    addl $1013904223, %eax
    movl %eax, (DRAWN)
    ret
