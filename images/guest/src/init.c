// SPDX-License-Identifier: Apache-2.0
/*
 * Process 1 of the base guest.
 *
 * One small static program in place of a shell script: where the guest's kernel is emulated (software KVM), a system
 * call costs about a millisecond and a new process fifty, so what happens before "ready" happens here, in few calls.
 * Everything slow or optional (network, metadata, ssh, /etc/rc.local) runs in /etc/hearth/boot, in the background.
 *
 * Signals are busybox's, so that its poweroff, reboot and halt work: USR2 power off (the kernel's ACPI power button
 * sends it too), TERM reboot, USR1 halt, INT (Ctrl-Alt-Del) power off.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCK_GET_SIZE_64 _IOR(0x12, 114, size_t)
#define EXT4_RESIZE_FS _IOW('f', 16, uint64_t)
#define CONSOLE "/dev/ttyS0"

static char *const environment[] = {
	"HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/sbin:/bin:/usr/sbin:/usr/bin",
	"TERM=vt100", "USER=root", "SHELL=/bin/sh", "PS1=\\h:\\w\\$ ", NULL,
};

static char report[1024];
static size_t report_length;

/* All lines of the boot report leave in one write. */
#define say(...) \
	(report_length += snprintf(report + report_length, sizeof report - report_length, "hearth-guest: " __VA_ARGS__))

static ssize_t read_file(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buffer, size - 1);

	if (fd >= 0)
		close(fd);
	buffer[n > 0 ? n : 0] = 0;
	buffer[strcspn(buffer, "\n")] = 0;
	return n;
}

/* Is this word on the kernel's command line? */
static int option(const char *command_line, const char *word)
{
	size_t length = strlen(word);

	for (const char *p = command_line; (p = strstr(p, word)); p += length)
		if ((p == command_line || p[-1] == ' ') && (!p[length] || p[length] == ' '))
			return 1;
	return 0;
}

static pid_t spawn(const char *program, char *const arguments[], int on_console)
{
	pid_t pid = vfork();

	if (pid)
		return pid;
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	if (on_console) {
		ioctl(0, TIOCSCTTY, 1);
		chdir("/root");
	} else {
		int null = open("/dev/null", O_RDWR);
		dup2(null, 0);
	}
	execve(program, arguments, environment);
	_exit(127);
}

/* The file system follows its volume: when the device is larger than the file system on it, ext4 grows in place. */
static void grow_root(dev_t device)
{
	struct { uint32_t blocks_low, unused[4], log_block_size; } head;
	struct { uint32_t blocks_high; } tail;
	uint8_t super[1024];
	uint64_t size, blocks, have, unit;
	int fd, root;

	if (mknod("/dev/.root", S_IFBLK | 0400, device))
		return;
	fd = open("/dev/.root", O_RDONLY | O_CLOEXEC);
	unlink("/dev/.root");
	if (fd < 0)
		return;
	if (pread(fd, super, sizeof super, 1024) == sizeof super && super[0x38] == 0x53 && super[0x39] == 0xef &&
	    !ioctl(fd, BLOCK_GET_SIZE_64, &size)) {
		memcpy(&head, super + 4, sizeof head);
		memcpy(&tail, super + 0x150, sizeof tail);
		unit = 1024ull << head.log_block_size;
		have = head.blocks_low | (super[0x60] & 0x80 ? (uint64_t)tail.blocks_high << 32 : 0);
		blocks = size / unit;
		/* Less than a mebibyte is left over by rounding, and is no reason to grow. */
		if (blocks > have + (1 << 20) / unit) {
			root = open("/", O_RDONLY | O_CLOEXEC);
			if (ioctl(root, EXT4_RESIZE_FS, &blocks))
				say("root could not grow: %s\n", strerror(errno));
			else
				say("root grew from %llu to %llu MiB\n", (unsigned long long)(have * unit >> 20),
				    (unsigned long long)(blocks * unit >> 20));
			close(root);
		}
	}
	close(fd);
}

/*
 * Where the kernel is emulated, TCP takes its link for slow and sends segments of two packets, which cost it far more than
 * their data does: that keeps it slow. With segments as large as can be it sends seven times as much.
 */
static void large_segments(void)
{
	int fd = open("/proc/sys/net/ipv4/tcp_min_tso_segs", O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		write(fd, "44", 2);
		close(fd);
	}
}

static void interfaces_up(int has_network)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	ioctl(fd, SIOCSIFFLAGS, &request);
	if (has_network) {
		strcpy(request.ifr_name, "eth0");
		ioctl(fd, SIOCSIFFLAGS, &request);
	}
	close(fd);
}

static void say_root(dev_t device)
{
	char path[64], name[64] = "?", target[256] = "", *where;
	ssize_t n;

	snprintf(path, sizeof path, "/sys/dev/block/%u:%u", (unsigned)(device >> 8 & 0xfff), (unsigned)(device & 0xff));
	n = readlink(path, target, sizeof target - 1);
	if (n > 0) {
		/* ../../devices/platform/….d0000000.virtio_mmio/virtio0/block/vda */
		char *base = strrchr(target, '/');
		snprintf(name, sizeof name, "%s", base ? base + 1 : target);
		where = strstr(target, "/devices/");
		where = where ? where + 9 : target;
		if ((base = strstr(where, "/block/")))
			*base = 0;
	} else {
		where = "?";
	}
	say("root /dev/%s %u:%u %s\n", name, (unsigned)(device >> 8 & 0xfff), (unsigned)(device & 0xff), where);
}

static void shut_down(int how)
{
	/* Programs get a second to end. */
	struct timespec tick = { 0, 50 * 1000 * 1000 };

	kill(-1, SIGTERM);
	for (int i = 0; i < 20; i++) {
		pid_t pid;
		while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
			;
		if (pid < 0)
			break;
		if (i == 4)
			kill(-1, SIGHUP); /* interactive shells ignore TERM */
		nanosleep(&tick, NULL);
	}
	kill(-1, SIGKILL);
	sync();
	mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	dprintf(1, "hearth-guest: %s\n",
		how == RB_AUTOBOOT ? "reboot" : how == RB_POWER_OFF ? "power off" : "halt");
	reboot(how);
	/* A machine without a way to switch itself off can still be reset. */
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

int main(void)
{
	static char *shell[] = { "-sh", NULL }, *background[] = { "/etc/hearth/boot", NULL, NULL };
	char command_line[2048], host[65];
	struct utsname kernel;
	struct sysinfo memory;
	struct timespec up;
	struct stat root;
	struct timespec since = { 0, 0 }, now;
	cpu_set_t cpus;
	sigset_t signals;
	pid_t shell_pid = 0;
	int has_network;

	umask(022);
	/* The kernel mounts /dev itself (CONFIG_DEVTMPFS_MOUNT) and opens the console as 0, 1 and 2. */
	mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount("sys", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
	mount("tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, NULL);
	mkdir("/dev/pts", 0755);
	mount("pts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
	sigfillset(&signals);
	sigprocmask(SIG_SETMASK, &signals, NULL);
	reboot(RB_DISABLE_CAD); /* Ctrl-Alt-Del is INT to this process, not a sudden reset */
	read_file("/proc/cmdline", command_line, sizeof command_line);
	if (read_file("/etc/hostname", host, sizeof host) > 0)
		sethostname(host, strlen(host));
	stat("/", &root);
	grow_root(root.st_dev);
	has_network = !access("/sys/class/net/eth0", F_OK) && !option(command_line, "hearth.net=off");
	interfaces_up(has_network);

	uname(&kernel);
	sysinfo(&memory);
	sched_getaffinity(0, sizeof cpus, &cpus);
	say("kernel %s\n", kernel.release);
	say_root(root.st_dev);
	say("memory %lu MiB, vcpus %d, network %s\n", memory.totalram * memory.mem_unit >> 20, CPU_COUNT(&cpus),
	    has_network ? "eth0" : "none");
	clock_gettime(CLOCK_BOOTTIME, &up);
	say("uptime %ld.%02ld s\n", (long)up.tv_sec, up.tv_nsec / 10000000);
	say("ready\n");
	write(1, report, report_length < sizeof report ? report_length : sizeof report);
	if (option(command_line, "softkvm"))
		large_segments();

	if (has_network || !access("/etc/rc.local", X_OK)) {
		mkdir("/run/hearth", 0755);
		background[1] = has_network ? "eth0" : NULL;
		spawn(background[0], background, 0);
	}

	for (;;) {
		siginfo_t info;

		if (!shell_pid && !option(command_line, "hearth.shell=off")) {
			clock_gettime(CLOCK_MONOTONIC, &since);
			shell_pid = spawn("/bin/sh", shell, 1);
		}
		if (sigwaitinfo(&signals, &info) < 0)
			continue;
		switch (info.si_signo) {
		case SIGCHLD: {
			pid_t pid;
			while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
				if (pid == shell_pid)
					shell_pid = 0;
			clock_gettime(CLOCK_MONOTONIC, &now);
			if (!shell_pid && now.tv_sec - since.tv_sec < 1)
				sleep(1);
			break;
		}
		case SIGUSR2:
		case SIGINT:
			shut_down(RB_POWER_OFF);
			break;
		case SIGTERM:
			shut_down(RB_AUTOBOOT);
			break;
		case SIGUSR1:
			shut_down(RB_HALT_SYSTEM);
			break;
		}
	}
}
