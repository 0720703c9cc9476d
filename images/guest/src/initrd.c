// SPDX-License-Identifier: Apache-2.0
/*
 * Process 1 of initrd.cpio: for tests of a kernel with an initial RAM disk, and of switching from it to a root volume.
 *   root=/dev/…                  mount it (ext4) and go on with its /sbin/init
 *   hearth.initrd=poweroff       without a root=: switch the machine off (the default)
 *   hearth.initrd=reboot | shell reset it, or answer lines typed on the console ("poweroff" and "reboot" are commands)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* The value of a word such as root=… on the kernel's command line, or NULL. */
static char *value(char *command_line, const char *name)
{
	static char found[256];
	size_t length = strlen(name);

	for (char *p = command_line; (p = strstr(p, name)); p += length) {
		if (p != command_line && p[-1] != ' ')
			continue;
		snprintf(found, sizeof found, "%.*s", (int)strcspn(p + length, " \n"), p + length);
		return found;
	}
	return NULL;
}

int main(void)
{
	char command_line[2048] = "", line[256], *word;
	struct utsname kernel;
	cpu_set_t cpus;
	ssize_t n;
	int fd;

	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	fd = open("/dev/console", O_RDWR);
	for (int i = 0; i < 3; i++)
		dup2(fd, i);
	uname(&kernel);
	sched_getaffinity(0, sizeof cpus, &cpus);
	dprintf(1, "hearth-initrd: hello from kernel %s, %d vcpus\n", kernel.release, CPU_COUNT(&cpus));
	fd = open("/proc/cmdline", O_RDONLY);
	read(fd, command_line, sizeof command_line - 1);
	close(fd);

	word = value(command_line, "root=");
	if (word) {
		struct timespec moment = { 0, 100 * 1000 * 1000 };
		for (int i = 0; i < 50 && mount(word, "/root", "ext4", 0, NULL); i++) {
			if (errno != ENOENT && errno != ENXIO)
				break;
			nanosleep(&moment, NULL);
		}
		mount("/dev", "/root/dev", NULL, MS_MOVE, NULL);
		umount("/proc");
		if (!chdir("/root") && !mount(".", "/", NULL, MS_MOVE, NULL) && !chroot(".")) {
			dprintf(1, "hearth-initrd: root is %s\n", word);
			execl("/sbin/init", "init", NULL);
		}
		dprintf(1, "hearth-initrd: no init on %s: %s\n", word, strerror(errno));
	}

	word = value(command_line, "hearth.initrd=");
	if (word && !strcmp(word, "shell")) {
		while (dprintf(1, "initrd# "), (n = read(0, line, sizeof line - 1)) > 0) {
			line[n] = 0;
			line[strcspn(line, "\r\n")] = 0;
			if (!strcmp(line, "poweroff"))
				break;
			if (!strcmp(line, "reboot"))
				reboot(RB_AUTOBOOT);
			dprintf(1, "you said: %s\n", line);
		}
	}
	if (word && !strcmp(word, "reboot"))
		reboot(RB_AUTOBOOT);
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}
