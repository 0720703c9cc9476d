// SPDX-License-Identifier: Apache-2.0
/*
 * Reads the metadata service (EC2's paths; an IMDSv2 token first, without one if the service has none) and applies
 * what it says: the host's name, root's authorized keys, the IPv6 address, user data. Prints nothing; ends 0 if the
 * service answered.
 * User data is left in /run/hearth/user-data: executable, for /etc/hearth/boot to run, if it starts with #! and this is
 * the instance's first boot.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

static char token[256];
static char buffer[128 << 10];

/* The body's length, with the body at *body; -1 without an answer, or with one that isn't 200. */
static long request(const char *method, const char *path, char **body)
{
	struct sockaddr_in service = { .sin_family = AF_INET, .sin_port = htons(80),
				       .sin_addr.s_addr = inet_addr("169.254.169.254") };
	struct timeval patience = { 3, 0 };
	char head[1024];
	size_t have = 0;
	ssize_t n;
	int length, status = 0, fd = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
	length = snprintf(head, sizeof head, "%s %s HTTP/1.0\r\nHost: 169.254.169.254\r\n%s%s\r\n%s\r\n", method, path,
			  *token ? "X-aws-ec2-metadata-token: " : "Connection: close",
			  token, *method == 'P' ? "X-aws-ec2-metadata-token-ttl-seconds: 300\r\nContent-Length: 0\r\n" : "");
	if (connect(fd, (struct sockaddr *)&service, sizeof service) || write(fd, head, length) != length) {
		close(fd);
		return -1;
	}
	while (have < sizeof buffer - 1 && (n = read(fd, buffer + have, sizeof buffer - 1 - have)) > 0)
		have += n;
	close(fd);
	buffer[have] = 0;
	*body = strstr(buffer, "\r\n\r\n");
	if (!*body || sscanf(buffer, "HTTP/%*s %d", &status) != 1 || status != 200)
		return -1;
	*body += 4;
	return buffer + have - *body;
}

static void write_file(const char *path, const char *data, size_t length, mode_t mode)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, mode);

	write(fd, data, length);
	close(fd);
}

/*
 * The address that DHCPv6 would give: busybox's static build has no client for that. The way out comes with the router
 * advertisements, which the kernel takes.
 */
static void set_ipv6(const char *interface, const char *address)
{
	/* struct in6_ifreq of linux/ipv6.h, which does not go with musl's headers. */
	struct { struct in6_addr address; unsigned int prefix_length; int index; } request = { .prefix_length = 128 };
	int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	request.index = if_nametoindex(interface);
	if (fd >= 0 && request.index && inet_pton(AF_INET6, address, &request.address) == 1)
		ioctl(fd, 0x8916 /* SIOCSIFADDR */, &request);
	close(fd);
}

int main(int count, char **arguments)
{
	char *body, *line, *next, path[256], keys[64 << 10];
	size_t length = 0;
	int fresh = 1, answered = 0;
	long n;

	/* The service may need a moment after the address is there. */
	n = request("PUT", "/latest/api/token", &body);
	if (n < 0)
		n = request("PUT", "/latest/api/token", &body);
	if (n > 0 && n < (long)sizeof token)
		memcpy(token, body, n);
	token[strcspn(token, "\r\n")] = 0;
	answered = n > 0;

	/* Another instance than the last time: a first boot, or a clone's. */
	n = request("GET", "/latest/meta-data/instance-id", &body);
	if (n > 0) {
		char last[256] = "";
		int fd = open("/var/lib/hearth/instance-id", O_RDONLY);

		answered = 1;
		if (fd >= 0)
			read(fd, last, sizeof last - 1);
		close(fd);
		fresh = strcmp(last, body) != 0;
		if (fresh) {
			mkdir("/var/lib/hearth", 0755);
			write_file("/var/lib/hearth/instance-id", body, n, 0644);
			write_file("/run/hearth/new-instance", body, n, 0644);
		}
	}

	n = request("GET", "/latest/meta-data/hostname", &body);
	if (n < 0)
		n = request("GET", "/latest/meta-data/local-hostname", &body);
	if (n > 0) {
		n = strcspn(body, "\r\n");
		/* The kernel takes 64 bytes. */
		if (n > 64)
			n = strcspn(body, ".\r\n");
		sethostname(body, n);
		body[n] = '\n';
		write_file("/run/hearth/hostname", body, n + 1, 0644);
	}

	if (!answered && n < 0)
		return 1;

	/* The list's lines are "0=name"; each key is below its number. */
	if (request("GET", "/latest/meta-data/public-keys/", &body) > 0) {
		char *list = strdup(body);
		for (line = list; *line; line = next) {
			size_t width = strcspn(line, "\r\n");
			next = line + width + strspn(line + width, "\r\n");
			line[strspn(line, "0123456789")] = 0;
			snprintf(path, sizeof path, "/latest/meta-data/public-keys/%s/openssh-key", line);
			n = request("GET", path, &body);
			if (n > 0 && length + n + 1 < sizeof keys) {
				memcpy(keys + length, body, n);
				length += n;
				if (body[n - 1] != '\n')
					keys[length++] = '\n';
			}
		}
		if (length) {
			mkdir("/root/.ssh", 0700);
			write_file("/root/.ssh/authorized_keys", keys, length, 0600);
		}
	}

	if (count > 1 && request("GET", "/latest/meta-data/ipv6", &body) > 0) {
		body[strcspn(body, "\r\n")] = 0;
		set_ipv6(arguments[1], body);
	}

	n = request("GET", "/latest/user-data", &body);
	if (n > 0)
		write_file("/run/hearth/user-data", body, n,
			   fresh && body[0] == '#' && body[1] == '!' ? 0700 : 0600);
	return 0;
}
