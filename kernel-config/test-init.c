// The init of kernel-config/test: tries out, inside the guest, what podvm needs of its kernel.
// Prints one line for each check, "ok NAME" or "FAIL NAME: REASON", then "all checks done", and ends the machine.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <linux/vm_sockets.h>
#include <mqueue.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void check(const char *name, int passed) {
    if (passed) printf("ok %s\n", name);
    else printf("FAIL %s: %s\n", name, strerror(errno));
}

static void check_mount(const char *name, const char *source, const char *target, const char *type, const char *options) {
    unsigned long flags = strcmp(type, "erofs") == 0 ? MS_RDONLY : 0;
    mkdir(target, 0755);
    check(name, mount(source, target, type, flags, options) == 0);
}

// A file's content, or "" if it cannot be read.
static char *content(const char *path) {
    static char buffer[65536];
    int file = open(path, O_RDONLY);
    ssize_t length = file < 0 ? 0 : read(file, buffer, sizeof buffer - 1);
    if (file >= 0) close(file);
    buffer[length > 0 ? length : 0] = 0;
    return buffer;
}

static void check_word(const char *what, const char *path, const char *word) {
    char name[200];
    snprintf(name, sizeof name, "%s %s", what, word);
    errno = ENOENT;
    check(name, strstr(content(path), word) != NULL);
}

// Runs one program of the initramfs; true if it ends with 0.
static int run(char *const arguments[]) {
    pid_t child = fork();
    int status = -1;
    if (child == 0) {
        execv(arguments[0], arguments);
        _exit(127);
    }
    waitpid(child, &status, 0);
    errno = ECHILD;
    return status == 0;
}

static void filesystems(void) {
    check_mount("tmpfs", "tmp", "/tmp", "tmpfs", "size=64m");
    check_mount("mount an EROFS partition of a GPT disk", "/dev/vda1", "/lower", "erofs", NULL);
    errno = ENOENT;
    check("read from it", strcmp(content("/lower/hello"), "hello\n") == 0);
    check_mount("mount ext4 without a journal", "/dev/vdb", "/upper", "ext4", "prjquota");
    mkdir("/upper/u", 0755);
    mkdir("/upper/w", 0755);
    check_mount("overlay with redirect_dir, metacopy, index", "overlay", "/merged", "overlay",
                "lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w,redirect_dir=on,metacopy=on,index=on");
    check("write through the overlay", open("/merged/new", O_CREAT | O_WRONLY, 0644) >= 0);
    check("rename a lower directory", rename("/merged/directory", "/merged/renamed") == 0);
    check_mount("9p over virtio", "share", "/share", "9p", "trans=virtio,version=9p2000.L");
    errno = ENOENT;
    check("read from it", strcmp(content("/share/hello"), "hello\n") == 0);
    check_mount("mqueue", "mqueue", "/mqueue", "mqueue", NULL);
    check_mount("hugetlbfs", "huge", "/huge", "hugetlbfs", NULL);
    check_mount("devpts", "devpts", "/devpts", "devpts", "ptmxmode=0666");
    check_mount("binfmt_misc", "binfmt", "/binfmt", "binfmt_misc", NULL);
    const char *types[] = {"virtiofs", "fuse", "autofs", "bpf", NULL};
    for (const char **type = types; *type; type++) check_word("filesystem", "/proc/filesystems", *type);
}

static void containers(void) {
    check_mount("cgroup2", "cgroup2", "/cgroup", "cgroup2", NULL);
    const char *controllers[] = {"cpu ", "cpuset", "io", "memory", "hugetlb", "pids", "rdma", "misc", NULL};
    for (const char **name = controllers; *name; name++) check_word("controller", "/cgroup/cgroup.controllers", *name);
    check("pressure files", access("/cgroup/memory.pressure", R_OK) == 0);

    struct bpf_insn allow[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 1}, {.code = BPF_JMP | BPF_EXIT}};
    union bpf_attr load = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, .insn_cnt = 2, .insns = (long)allow, .license = (long)"GPL"};
    int program = syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
    mkdir("/cgroup/app", 0755);
    union bpf_attr attach = {.target_fd = open("/cgroup/app", O_RDONLY), .attach_bpf_fd = program, .attach_type = BPF_CGROUP_DEVICE};
    check("BPF device program on a cgroup", program >= 0 && syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach) == 0);

    struct sock_filter code = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog filter = {1, &code};
    check("seccomp filter with a listener",
          syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter) >= 0);
    check("Landlock", syscall(444, NULL, 0, 1) >= 1);  // landlock_create_ruleset: which ABI
    pid_t child = fork();
    int status = -1;
    if (child == 0)
        _exit(unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP | 0x80));
    waitpid(child, &status, 0);
    check("all eight namespaces", status == 0);
}

static void system_calls(void) {
    struct io_uring_params ring = {0};
    int uring = syscall(SYS_io_uring_setup, 4, &ring);
    char *submit = mmap(NULL, ring.sq_off.array + 16, PROT_READ | PROT_WRITE, MAP_SHARED, uring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entries = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, uring, IORING_OFF_SQES);
    check("set up io_uring", uring >= 0 && submit != MAP_FAILED && entries != MAP_FAILED);
    if (uring >= 0 && submit != MAP_FAILED && entries != MAP_FAILED) {
        *entries = (struct io_uring_sqe){.opcode = IORING_OP_NOP, .user_data = 7};
        *(unsigned *)(submit + ring.sq_off.array) = 0;
        *(volatile unsigned *)(submit + ring.sq_off.tail) += 1;
        check("io_uring completes a request", syscall(SYS_io_uring_enter, uring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1);
    }
    check("POSIX message queue", mq_open("/queue", O_CREAT | O_RDWR, 0600, NULL) >= 0);
    check("System V shared memory", shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600) >= 0);
    check("userfaultfd", syscall(SYS_userfaultfd, O_CLOEXEC) >= 0);
    check("memfd_create", memfd_create("m", 0) >= 0);
    check("memory protection keys or no such CPU", syscall(SYS_pkey_alloc, 0, 0) >= 0 || errno == ENOSPC);
    check("keyctl", syscall(SYS_keyctl, 1, 0) >= 0 || errno == ENOKEY);
    check("kcmp", syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 0) == 0);
    check("pidfd_open", syscall(434, getpid(), 0) >= 0);
    check("membarrier", syscall(SYS_membarrier, 0, 0) >= 0);
    check("transparent huge pages on request", strstr(content("/sys/kernel/mm/transparent_hugepage/enabled"), "[madvise]") != NULL);
    check("overcommit can be set", access("/proc/sys/vm/overcommit_memory", W_OK) == 0);
    check("/proc/self/io", access("/proc/self/io", R_OK) == 0);
    check("/proc/config.gz", access("/proc/config.gz", R_OK) == 0);
    check("children of a task", access("/proc/thread-self/children", R_OK) == 0);
}

static void network(void) {
    check("vsock", socket(AF_VSOCK, SOCK_STREAM, 0) >= 0);
    check("IPv6", socket(AF_INET6, SOCK_STREAM, 0) >= 0);
    check("packet sockets", socket(AF_PACKET, SOCK_RAW, 0) >= 0);
    check("socket diagnostics (ss)", socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG) >= 0);
    check("tun", open("/dev/net/tun", O_RDWR) >= 0);
    check("virtio-net", access("/sys/class/net/eth0", F_OK) == 0);
    check_word("congestion control", "/proc/sys/net/ipv4/tcp_available_congestion_control", "bbr");
    errno = ENOENT;
    check("cubic is the default", strcmp(content("/proc/sys/net/ipv4/tcp_congestion_control"), "cubic\n") == 0);
    if (access("/usr/sbin/nft", X_OK) == 0) {
        check("nft: nat, masquerade, redirect, ct, reject, fib, log, limit",
              run((char *[]){"/usr/sbin/nft", "-f", "/rules.nft", NULL}));
        check("nft lists them", run((char *[]){"/usr/sbin/nft", "list", "ruleset", NULL}));
    }
    if (access("/sbin/ip", X_OK) == 0) {
        const char *kinds[] = {"bridge", "veth", "dummy", "vxlan", NULL};
        for (const char **kind = kinds; *kind; kind++) {
            char name[50], device[16];
            snprintf(name, sizeof name, "device of kind %s", *kind);
            snprintf(device, sizeof device, "test-%s", *kind);
            int vxlan = strcmp(*kind, "vxlan") == 0;
            check(name, run((char *[]){"/sbin/ip", "link", "add", device, "type", (char *)*kind, vxlan ? "id" : NULL, "1",
                                       "dstport", "4789", NULL}));
        }
        check("policy routing", run((char *[]){"/sbin/ip", "rule", "add", "from", "10.0.0.1", "table", "7", NULL}));
    }
}

static void devices(void) {
    check("entropy from virtio-rng", strstr(content("/sys/class/misc/hw_random/rng_current"), "virtio") != NULL);
    check("virtio console", access("/dev/hvc0", F_OK) == 0);
    check("balloon", access("/sys/bus/virtio/drivers/virtio_balloon", F_OK) == 0);
    check("pmem driver", access("/sys/bus/virtio/drivers/virtio_pmem", F_OK) == 0);
    check("virtio-mem driver", access("/sys/bus/virtio/drivers/virtio_mem", F_OK) == 0);
    check("virtio-fs driver", access("/sys/bus/virtio/drivers/virtiofs", F_OK) == 0);
    check("FUSE device", open("/dev/fuse", O_RDWR) >= 0);
    check("loop control", open("/dev/loop-control", O_RDWR) >= 0);
    check("no PCI, no ACPI, no modules", access("/proc/bus/pci", F_OK) != 0 && access("/sys/firmware/acpi", F_OK) != 0 &&
                                             access("/proc/modules", F_OK) != 0);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    check_mount("procfs", "proc", "/proc", "proc", NULL);
    check_mount("sysfs", "sys", "/sys", "sysfs", NULL);
    check_mount("devtmpfs", "dev", "/dev", "devtmpfs", NULL);
    filesystems();
    containers();
    system_calls();
    network();
    devices();
    printf("all checks done\n");
    sync();
    reboot(RB_AUTOBOOT);
}
