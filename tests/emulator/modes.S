# From reset through real, protected and long mode; a letter to port 0xe9 for each thing that works.
        .code16
        .org 0
        .globl _start
_start:
        cli
        cld
        mov     $'R, %al
        out     %al, $0xe9
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7000, %sp
        # data beside the code, while all data segments begin at 0
        pushl   %cs:letter - _start
        pop     %ax
        pop     %bx
        out     %al, $0xe9
        # an interrupt by the real-mode table
        movw    $int20 - _start, 0x80
        movw    $0xf000, 0x82
        int     $0x20
        # code that changes the instruction right behind it
        mov     $0x8000, %di
        mov     $smc - _start, %si
        mov     $smc_end - smc, %cx
        mov     %cs, %ax
        mov     %ax, %ds
        rep movsb
        xor     %ax, %ax
        mov     %ax, %ds
        lcall   $0, $0x8000
        out     %al, $0xe9
        lcall   $0, $0x8000
        out     %al, $0xe9
        lgdtl   %cs:gdtr - _start
        mov     %cr0, %eax
        or      $1, %eax
        mov     %eax, %cr0
        ljmpl   $8, $prot
letter: .long   'C
int20:  mov     $'I, %al
        out     %al, $0xe9
        iret
smc:    movb    $'S, 0x8006          # the next instruction's operand
        mov     $'x, %al
        lret
smc_end:

        .code32
prot:   mov     $0x10, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7000, %esp
        mov     $'P, %al
        out     %al, $0xe9
        # page tables at 0x10000: 2 MiB pages, all of 1 GiB, but the second of them is missing
        mov     $0x10000, %edi
        xor     %eax, %eax
        mov     $0x1000, %ecx
        rep stosl
        movl    $0x11007, 0x10000
        movl    $0x12007, 0x11000
        mov     $0x87, %eax
        mov     $0x12000, %edi
        mov     $512, %ecx
1:      mov     %eax, (%edi)
        add     $8, %edi
        add     $0x200000, %eax
        loop    1b
        movl    $0, 0x12008
        movl    $0x40000087, 0x13000
        movl    $0x13007, 0x11018      # 3 GiB up: for the ROM at the top
        mov     $0x13000, %edi
        mov     $0xc0000087, %eax
        mov     $512, %ecx
1:      mov     %eax, (%edi)
        add     $8, %edi
        add     $0x200000, %eax
        loop    1b
        mov     $0x10000, %eax
        mov     %eax, %cr3
        mov     $0x620, %eax           # PAE, OSFXSR, OSXMMEXCPT
        mov     %eax, %cr4
        mov     $0xc0000080, %ecx
        rdmsr
        or      $0x901, %eax           # LME, NXE, SCE
        wrmsr
        mov     %cr0, %eax
        or      $0x80010000, %eax
        mov     %eax, %cr0
        ljmpl   $0x18, $long

        .code64
long:   mov     $'L, %al
        out     %al, $0xe9
        # IDT at 0x14000
        mov     $0x14000, %edi
        mov     $14, %ecx
        lea     page_fault(%rip), %rax
        call    gate
        mov     $0x40, %ecx
        lea     irq(%rip), %rax
        call    gate
        mov     $13, %ecx
        lea     general(%rip), %rax
        call    gate
        lidt    idtr(%rip)
        lgdt    gdtr(%rip)
        # a TSS with a stack for level 0
        movq    $0x7000, 0x15004
        mov     $0x16000, %edi         # a GDT in RAM, for the busy bit
        lea     gdt(%rip), %rsi
        mov     $gdt_end - gdt, %ecx
        rep movsb
        movw    $gdt_end - gdt - 1, 0x17000
        movq    $0x16000, 0x17002
        lgdt    0x17000
        mov     $0x38, %ax
        ltr     %ax
        # a page fault that the handler mends
        mov     $0x200000, %ebx
        movl    $0x1234, (%rbx)
        cmpl    $0x1234, (%rbx)
        jne     bad
        # an interrupt, waited for
        mov     $1, %al
        out     %al, $0xf0
        sti                            # lets it in behind the next instruction
        hlt
        cli
        # to user mode and back by SYSCALL
        mov     $0xc0000081, %ecx
        mov     $0x00200018, %edx
        xor     %eax, %eax
        wrmsr
        mov     $0xc0000082, %ecx
        lea     entry(%rip), %rax
        mov     %rax, %rdx
        shr     $32, %rdx
        wrmsr
        lea     user(%rip), %rcx
        mov     $0x3202, %r11d         # IF, IOPL 3: it may use ports
        mov     $0x6000, %esp
        sysretq
user:   mov     $'U, %al
        out     %al, $0xe9
        syscall
        hlt                            # not allowed: general
bad:    mov     $'!, %al
        out     %al, $0xe9
        out     %al, $0xf4
entry:  mov     $'C, %al
        out     %al, $0xe9
        sysretq
general:
        mov     $'G, %al
        out     %al, $0xe9
        testb   $3, 16(%rsp)           # from user mode, on the TSS's stack
        jz      bad
        cmp     $0x6fd0, %rsp
        jne     bad
        out     %al, $0xf4
page_fault:
        mov     $'F, %al
        out     %al, $0xe9
        mov     %cr2, %rax
        cmp     $0x200000, %rax
        jne     bad
        cmpl    $2, (%rsp)
        jne     bad
        movl    $0x200087, 0x12008
        add     $8, %rsp
        iretq
irq:    mov     $'Q, %al
        out     %al, $0xe9
        iretq
gate:   push    %rdi                   # handler rax for vector ecx
        shl     $4, %ecx
        add     %rcx, %rdi
        mov     %ax, (%rdi)
        movw    $0x18, 2(%rdi)
        movw    $0x8e00, 4(%rdi)
        shr     $16, %rax
        mov     %ax, 6(%rdi)
        shr     $16, %rax
        mov     %eax, 8(%rdi)
        movl    $0, 12(%rdi)
        pop     %rdi
        ret

        .balign 8
gdt:    .quad 0
        .quad 0x00cf9b000000ffff       # 08 code 32
        .quad 0x00cf93000000ffff       # 10 data
        .quad 0x00af9b000000ffff       # 18 code 64
        .quad 0x00cf93000000ffff       # 20 data for SYSCALL
        .quad 0x00cff3000000ffff       # 28 user data
        .quad 0x00affb000000ffff       # 30 user code 64
        .quad 0x0000890150000067       # 38 TSS at 0x15000; its upper half:
        .quad 0
gdt_end:
gdtr:   .word gdt_end - gdt - 1
        .long gdt, 0
idtr:   .word 0x4ff
        .quad 0x14000

        .org 0xfff0
        .code16
        ljmp    $0xf000, $_start - _start
        .org 0x10000
