/*
 * Many HTTP/1.1 clients on one thread, and an exact account of what became of each request.
 *
 *   http_load PORT KEEPALIVE CLOSING PAUSE_US SECONDS < targets
 *
 * A target is a line "HOST PATH EXPECTED OPTIONAL": the request, how its body must begin, and whether (1) 404 and
 * 503 are answers too, for a service that comes and goes. KEEPALIVE clients ask
 * again and again on one connection, CLOSING ones make a connection for each request; each waits PAUSE_US
 * between two requests. After SECONDS, or on SIGTERM, requests under way are finished and the account is
 * printed as JSON. A request fails when its connection is refused, reset or closed before the whole answer,
 * when there is none for 10 s, when its status is not 200, or when another service answers. A connection
 * that is closed while nothing was asked is no failure, as HTTP allows it; it is counted as an idle close.
 *
 * The body is an IPv4 address of 127.0.0.0/8; "last" tells when the last request was sent that each
 * answered, in seconds of CLOCK_MONOTONIC, which is also Python's time.monotonic().
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TIMEOUT_SECONDS 10.0
#define SHOWN_FAILURES 20
#define BUCKETS 2000 /* of latency, 10 us wide below 10 ms, then 10 ms wide */
#define MOST_KINDS 64

struct target {
    char *host, *path, *expected;
    int optional;
};

enum phase { IDLE, CONNECTING, WAITING };

struct client {
    int socket;
    int closing;
    enum phase phase;
    struct target *target;
    double sent, due;
    size_t used;
    int fresh; /* no request was answered on this connection yet */
    char answer[4096];
};

struct kind {
    char name[32];
    long count;
};

static struct target *targets;
static size_t target_count;
static struct kind kinds[MOST_KINDS];
static size_t kind_count;
static char shown[SHOWN_FAILURES][200];
static size_t shown_count;
static long answered[2], absent, idle_closes, connections;
static long latency[BUCKETS + 1];
static double longest;
static double *last;
static int poller, port;
static double pause_seconds;
static volatile sig_atomic_t stopping;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void stop(int number)
{
    (void)number;
    stopping = 1;
}

static void disconnect(struct client *client)
{
    if (client->socket >= 0)
        close(client->socket);
    client->socket = -1;
    client->fresh = 1;
}

static void rest(struct client *client)
{
    client->phase = IDLE;
    client->due = now() + pause_seconds;
}

static void fail(struct client *client, const char *what)
{
    size_t index;
    for (index = 0; index < kind_count && strcmp(kinds[index].name, what); index++)
        ;
    if (index == kind_count && kind_count < MOST_KINDS)
        snprintf(kinds[kind_count++].name, sizeof kinds[0].name, "%s", what);
    if (index < MOST_KINDS)
        kinds[index].count++;
    if (shown_count < SHOWN_FAILURES)
        snprintf(shown[shown_count++], sizeof shown[0], "%s %s after %.1f ms at %.3f, %s connection: %s%s", what,
                 client->closing ? "closing" : "keep-alive", (now() - client->sent) * 1e3, client->sent,
                 client->fresh ? "new" : "used", client->target->host, client->target->path);
    disconnect(client);
    rest(client);
}

static void answer(struct client *client, const char *body)
{
    double took = now() - client->sent;
    struct in_addr address;
    size_t bucket = took < 0.01 ? (size_t)(took * 1e5) : 1000 + (size_t)(took * 1e2);
    latency[bucket < BUCKETS ? bucket : BUCKETS]++;
    if (took > longest)
        longest = took;
    answered[client->closing]++;
    client->fresh = 0;
    if (inet_pton(AF_INET, body, &address) == 1)
        last[ntohl(address.s_addr) & 0xffffff] = client->sent;
}

/* Whether the answer is whole; what is wrong with it is a failure. */
static void look(struct client *client)
{
    char *end, *length, *body;
    size_t size;
    client->answer[client->used] = 0;
    end = strstr(client->answer, "\r\n\r\n");
    if (!end)
        return;
    body = end + 4;
    *end = 0;
    length = strcasestr(client->answer, "\r\ncontent-length:");
    size = length ? strtoul(length + 17, NULL, 10) : 0;
    if (client->used - (body - client->answer) < size) {
        *end = '\r';
        return;
    }
    body[size] = 0;
    if (client->target->optional && (!strncmp(client->answer, "HTTP/1.1 404", 12) ||
                                     !strncmp(client->answer, "HTTP/1.1 503", 12))) {
        absent++;
        body = "";
    } else if (strncmp(client->answer, "HTTP/1.1 200", 12)) {
        char what[32];
        snprintf(what, sizeof what, "status %.3s", client->answer + 9);
        fail(client, what);
        return;
    } else if (strncmp(body, client->target->expected, strlen(client->target->expected))) {
        fail(client, "another service");
        return;
    }
    answer(client, body);
    if (client->closing || strcasestr(client->answer, "\r\nconnection: close"))
        disconnect(client);
    rest(client);
}

static void watch(struct client *client, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = client};
    epoll_ctl(poller, operation, client->socket, &event);
}

static void ask(struct client *client)
{
    char request[512];
    int size = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", client->target->path,
                        client->target->host, client->closing ? "Connection: close\r\n" : "");
    client->phase = WAITING;
    client->used = 0;
    /* A request is far smaller than a socket's buffer: it is sent whole or not at all. */
    if (send(client->socket, request, size, MSG_NOSIGNAL) != size)
        fail(client, errno == EPIPE || errno == ECONNRESET ? "reset" : "send");
    else
        watch(client, EPOLL_CTL_MOD, EPOLLIN | EPOLLRDHUP);
}

static void begin(struct client *client)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1;
    client->target = &targets[random() % target_count];
    client->sent = now();
    if (client->socket >= 0) {
        ask(client);
        return;
    }
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    client->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(client->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    connections++;
    client->phase = CONNECTING;
    if (connect(client->socket, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        fail(client, errno == ECONNREFUSED ? "refused" : errno == EADDRNOTAVAIL ? "no local port" : "connect");
        return;
    }
    watch(client, EPOLL_CTL_ADD, EPOLLOUT);
}

static void receive(struct client *client)
{
    ssize_t got;
    if (client->phase == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(client->socket, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error)
            fail(client, error == ECONNREFUSED ? "refused" : error == ECONNRESET ? "reset" : "connect");
        else
            ask(client);
        return;
    }
    got = recv(client->socket, client->answer + client->used, sizeof client->answer - 1 - client->used, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (client->phase == IDLE) {
        if (got <= 0) {
            idle_closes++;
            disconnect(client);
        }
        return;
    }
    if (got <= 0) {
        fail(client, got < 0 ? "reset" : client->used ? "cut short" : "closed unanswered");
        return;
    }
    client->used += got;
    look(client);
}

static void read_targets(void)
{
    char host[256], path[256], expected[64];
    int optional;
    while (scanf("%255s %255s %63s %d", host, path, expected, &optional) == 4) {
        targets = realloc(targets, (target_count + 1) * sizeof *targets);
        targets[target_count++] = (struct target){strdup(host), strdup(path), strdup(expected), optional};
    }
    if (!target_count) {
        fputs("no targets\n", stderr);
        exit(2);
    }
}

static double percentile_ms(double share)
{
    long total = 0, seen = 0;
    size_t bucket;
    for (bucket = 0; bucket <= BUCKETS; bucket++)
        total += latency[bucket];
    for (bucket = 0; bucket <= BUCKETS; bucket++) {
        seen += latency[bucket];
        if (seen >= total * share)
            break;
    }
    /* The upper end of its bucket, unless that is more than there was. */
    double ms = bucket < 1000 ? (bucket + 1) * 0.01 : (bucket - 1000 + 1) * 10.0;
    return ms < longest * 1e3 ? ms : longest * 1e3;
}

static void print(double seconds)
{
    size_t index;
    const char *comma = "";
    printf("{\"keep_alive\": %ld, \"closing\": %ld, \"absent\": %ld, ", answered[0], answered[1], absent);
    printf("\"connections\": %ld, \"idle_closes\": %ld, ", connections, idle_closes);
    printf("\"seconds\": %.3f, \"p50_ms\": %.2f, \"p99_ms\": %.2f, \"longest_ms\": %.1f, \"failures\": {", seconds,
           percentile_ms(0.5), percentile_ms(0.99), longest * 1e3);
    for (index = 0; index < kind_count; index++)
        printf("%s\"%s\": %ld", index ? ", " : "", kinds[index].name, kinds[index].count);
    printf("}, \"first_failures\": [");
    for (index = 0; index < shown_count; index++)
        printf("%s\"%s\"", index ? ", " : "", shown[index]);
    printf("], \"last\": {");
    for (index = 0; index < 1 << 24; index++)
        if (last[index] > 0) {
            printf("%s\"127.%zu.%zu.%zu\": %.4f", comma, index >> 16, index >> 8 & 255, index & 255, last[index]);
            comma = ", ";
        }
    printf("}}\n");
}

int main(int count, char **arguments)
{
    struct epoll_event events[512];
    struct client *clients;
    int keep_alive, total, index, busy = 1;
    double began = now(), end;
    if (count != 6) {
        fputs("usage: http_load PORT KEEPALIVE CLOSING PAUSE_US SECONDS < targets\n", stderr);
        return 2;
    }
    port = atoi(arguments[1]);
    keep_alive = atoi(arguments[2]);
    total = keep_alive + atoi(arguments[3]);
    pause_seconds = atof(arguments[4]) / 1e6;
    end = began + atof(arguments[5]);
    signal(SIGTERM, stop);
    signal(SIGINT, SIG_IGN);
    read_targets();
    last = calloc(1 << 24, sizeof *last);
    clients = calloc(total, sizeof *clients);
    poller = epoll_create1(0);
    for (index = 0; index < total; index++) {
        clients[index] = (struct client){.socket = -1, .closing = index >= keep_alive, .fresh = 1};
        /* They do not all begin in one instant. */
        clients[index].due = began + pause_seconds * index / total;
    }
    while (busy) {
        double time = now();
        int over = stopping || time >= end;
        int ready;
        busy = !over;
        for (index = 0; index < total; index++) {
            struct client *client = &clients[index];
            if (client->phase != IDLE) {
                busy = 1;
                if (time - client->sent > TIMEOUT_SECONDS)
                    fail(client, "no answer in 10 s");
            } else if (!over && time >= client->due) {
                begin(client);
            }
        }
        ready = epoll_wait(poller, events, 512, 1);
        for (index = 0; index < ready; index++) {
            struct client *client = events[index].data.ptr;
            if (client->socket >= 0)
                receive(client);
        }
    }
    print(now() - began);
    return 0;
}
