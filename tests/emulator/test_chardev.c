/* Chardevs: what goes in comes out, whoever is at the other end. */
#include "../check.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/options.h"
#include "chardev/chardev.h"

struct listener {
    pthread_mutex_t lock;
    pthread_cond_t more;
    char got[256];
    size_t len, room;
    int opened, closed, breaks;
};

static size_t room(void *opaque)
{
    struct listener *l = opaque;
    LOCK_SCOPE(&l->lock);
    return l->room;
}

static void input(void *opaque, const uint8_t *data, size_t length)
{
    struct listener *l = opaque;
    LOCK_SCOPE(&l->lock);

    assert_true(length <= l->room && l->len + length < sizeof(l->got));
    memcpy(l->got + l->len, data, length);
    l->len += length;
    l->room -= length;
    pthread_cond_broadcast(&l->more);
}

static void event(void *opaque, enum chardev_event what)
{
    struct listener *l = opaque;
    LOCK_SCOPE(&l->lock);

    l->opened += what == CHARDEV_OPENED;
    l->closed += what == CHARDEV_CLOSED;
    l->breaks += what == CHARDEV_BREAK;
    pthread_cond_broadcast(&l->more);
}

#define LISTENER                                                                         \
    {                                                                                    \
        .lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .room = 200 \
    }

static struct chardev_user user_of(struct listener *l)
{
    return (struct chardev_user){ .opaque = l, .room = room, .input = input, .event = event };
}

static void expect(struct listener *l, const char *text)
{
    LOCK_SCOPE(&l->lock);
    while (l->len < strlen(text))
        pthread_cond_wait(&l->more, &l->lock);
    l->got[l->len] = '\0';
    assert_string_equal(l->got, text);
}

static void await(struct listener *l, const int *count, int want)
{
    LOCK_SCOPE(&l->lock);
    while (*count < want)
        pthread_cond_wait(&l->more, &l->lock);
}

static void add(const char *spec)
{
    _cleanup_error_ struct error *err = NULL;
    _cleanup_json_ json_t *o = opts_parse_keyval(spec, "backend", &err);

    assert_non_null(o);
    if (chardev_add(o, &err) < 0)
        fail_msg("%s: %s", spec, error_text(err));
}

static struct chardev *take(const char *name, const struct chardev_user *user)
{
    struct chardev *c = NULL;
    _cleanup_error_ struct error *err = NULL;

    assert_int_equal(chardev_take(name, user, &c, &err), 0);
    assert_int_equal(chardevs_start(&err), 0);
    return c;
}

static int call(const char *path)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    return fd;
}

static void expect_fd(int fd, const char *text)
{
    char got[256] = "";
    size_t n = 0;

    while (n < strlen(text)) {
        ssize_t r = read(fd, got + n, sizeof(got) - 1 - n);
        assert_true(r > 0);
        n += (size_t)r;
    }
    assert_string_equal(got, text);
}

static char folder[] = "/tmp/chardev-XXXXXX";

static void test_a_peer_comes_and_goes_and_comes(void **state)
{
    struct listener l = LISTENER;
    struct chardev_user user = user_of(&l);

    (void)state;
    add("socket,id=a,path=a,server=on,wait=off");
    struct chardev *c = take("a", &user);
    chardev_write(c, "lost", 4); /* nobody is there */
    for (int i = 1; i <= 2; i++) {
        int fd = call("a");
        await(&l, &l.opened, i);
        assert_int_equal(write(fd, "in", 2), 2);
        expect(&l, i == 1 ? "in" : "inin");
        chardev_write(c, "out", 3);
        expect_fd(fd, "out");
        close(fd);
        await(&l, &l.closed, i);
    }
    chardev_release(c, &user);
    chardevs_close();
    assert_int_not_equal(access("a", F_OK), 0);
}

static void test_input_waits_for_room(void **state)
{
    struct listener l = LISTENER;
    struct chardev_user user = user_of(&l);

    (void)state;
    l.room = 3;
    add("socket,id=a,path=a,server=on,wait=off");
    struct chardev *c = take("a", &user);
    int fd = call("a");
    assert_int_equal(write(fd, "abcdef", 6), 6);
    expect(&l, "abc");
    {
        LOCK_SCOPE(&l.lock);
        l.room = 10;
    }
    chardev_more(c);
    expect(&l, "abcdef");
    close(fd);
    chardev_release(c, &user);
    chardevs_close();
}

static void test_control_a_goes_from_user_to_user(void **state)
{
    struct listener one = LISTENER, two = LISTENER;
    struct chardev_user first = user_of(&one), second = user_of(&two);

    (void)state;
    add("socket,id=m,path=m,server=on,wait=off,mux=on");
    struct chardev *c = take("m", &first);
    take("m", &second);
    int fd = call("m");
    assert_int_equal(write(fd, "ab\1ccd\1b\1c\1\1e", 13), 13);
    expect(&two, "cd");
    expect(&one, "ab\1e");
    assert_int_equal(two.breaks, 1);
    close(fd);
    chardev_release(c, &first);
    chardev_release(c, &second);
    chardevs_close();
}

static void test_who_reads_nothing_is_given_up_and_taken_again(void **state)
{
    static uint8_t much[1 << 20];
    struct listener l = LISTENER;
    struct chardev_user user = user_of(&l);

    (void)state;
    memset(much, 'x', sizeof(much));
    add("socket,id=a,path=a,server=on,wait=off");
    struct chardev *c = take("a", &user);
    int fd = call("a");
    await(&l, &l.opened, 1);
    chardev_write(c, much, sizeof(much)); /* returns, after a while */
    struct pollfd p = { .fd = fd, .events = POLLIN };
    while (poll(&p, 1, 200) == 1)
        assert_true(read(fd, much, sizeof(much)) > 0);
    chardev_write(c, "again", 5);
    expect_fd(fd, "again");
    close(fd);
    chardev_release(c, &user);
    chardevs_close();
}

static void test_telnet_is_taken_out_and_put_in(void **state)
{
    static const uint8_t typed[] = { 'a', 255, 251, 31,  'b', 255, 255, 255, 243,
                                     255, 250, 31,  255, 1,   255, 240, 'c' };
    struct listener l = LISTENER;
    struct chardev_user user = user_of(&l);

    (void)state;
    add("socket,id=t,path=t,server=on,wait=off,telnet=on");
    struct chardev *c = take("t", &user);
    int fd = call("t");
    expect_fd(fd, "\377\373\1\377\373\3\377\373"); /* up to a zero */
    assert_int_equal(write(fd, typed, sizeof(typed)), sizeof(typed));
    expect(&l, "ab\377c");
    assert_int_equal(l.breaks, 1);
    close(fd);
    chardev_release(c, &user);
    chardevs_close();
}

static void test_files_and_old_spellings(void **state)
{
    _cleanup_error_ struct error *err = NULL;
    char got[16] = "";
    const char *name;
    struct chardev_user nobody = { 0 };

    (void)state;
    assert_int_equal(chardev_add_legacy("file:f", "s0", &name, &err), 0);
    assert_string_equal(name, "s0");
    struct chardev *c = take(name, &nobody);
    chardev_write(c, "hello", 5);
    assert_int_equal(chardev_add_legacy("unix:u,server,nowait", "s1", &name, &err), 0);
    close(call("u"));
    assert_int_equal(chardev_add_legacy("none", "s2", &name, &err), 0);
    assert_null(name);
    assert_int_equal(chardev_add_legacy("chardev:s1", "s3", &name, &err), 0);
    assert_string_equal(name, "s1");
    assert_int_equal(chardev_add_legacy("tcp::0,server=on,wait=off", "s4", &name, &err), 0);
    assert_true(chardev_add_legacy("vc", "s5", &name, &err) < 0);
    assert_non_null(strstr(error_text(err), "not offered"));
    chardevs_close();

    int fd = open("f", O_RDONLY);
    assert_int_equal(read(fd, got, sizeof(got)), 5);
    assert_string_equal(got, "hello");
    close(fd);
}

static void test_a_pseudo_terminal_passes_every_byte(void **state)
{
    struct listener l = LISTENER;
    struct chardev_user user = user_of(&l);

    (void)state;
    add("pty,id=p,path=p");
    struct chardev *c = take("p", &user);
    int fd = open("p", O_RDWR | O_NOCTTY);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "\3\r\n", 3), 3);
    expect(&l, "\3\r\n");
    chardev_write(c, "\n", 1);
    expect_fd(fd, "\n");
    close(fd);
    chardev_release(c, &user);
    chardevs_close();
}

static void test_mistakes_are_told(void **state)
{
    static const struct {
        const char *spec, *says;
    } cases[] = {
        { "socket,id=a", "path=" },
        { "socket,id=a,path=/x,port=5", "one of" },
        { "file,id=a", "path= is missing" },
        { "nothing,id=a", "no backend 'nothing'" },
        { "null", "id= is missing" },
        { "null,id=a,colour=red", "colour" },
        { "file,id=a,path=/nowhere/at/all", "/nowhere/at/all" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        _cleanup_error_ struct error *err = NULL;
        _cleanup_json_ json_t *o = opts_parse_keyval(cases[i].spec, "backend", &err);
        assert_true(chardev_add(o, &err) < 0);
        if (!strstr(error_text(err), cases[i].says))
            fail_msg("%s: %s", cases[i].spec, error_text(err));
    }
    chardevs_close();
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? chdir(folder) : -1;
}

static int remove_folder(void **state)
{
    char command[64];
    (void)state;
    snprintf(command, sizeof(command), "rm -r %s", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_peer_comes_and_goes_and_comes),
        cmocka_unit_test(test_input_waits_for_room),
        cmocka_unit_test(test_control_a_goes_from_user_to_user),
        cmocka_unit_test(test_who_reads_nothing_is_given_up_and_taken_again),
        cmocka_unit_test(test_telnet_is_taken_out_and_put_in),
        cmocka_unit_test(test_files_and_old_spellings),
        cmocka_unit_test(test_a_pseudo_terminal_passes_every_byte),
        cmocka_unit_test(test_mistakes_are_told),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
