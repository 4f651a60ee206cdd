package snapshots

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
)

func overlayMount(options ...string) []mount.Mount {
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}
}

func bindMount(source string, options ...string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: source, Options: options}}
}

func TestRewrite(t *testing.T) {
	long := make([]string, 128)
	for i := range long {
		long[i] = fmt.Sprintf("/r/snapshots/%d/fs", i)
	}
	for _, c := range []struct {
		name          string
		in            []mount.Mount
		parents, keep int
		dir           string
		want          []mount.Mount
	}{
		{
			"container on one lazy layer",
			overlayMount("workdir=/r/snapshots/2/work", "upperdir=/r/snapshots/2/fs", "lowerdir=/r/snapshots/1/fs", "index=off"), 1, 0, "/m/root",
			overlayMount("workdir=/r/snapshots/2/work", "upperdir=/r/snapshots/2/fs", "lowerdir=/m/root", "index=off"),
		},
		{
			"container on three lazy layers",
			overlayMount("workdir=/w", "upperdir=/u", "lowerdir=/3:/2:/1", "userxattr", "index=off"), 3, 0, "/m/root",
			overlayMount("workdir=/w", "upperdir=/u", "lowerdir=/m/root", "userxattr", "index=off"),
		},
		{
			"container on two ordinary layers on lazy ones",
			overlayMount("workdir=/w", "upperdir=/u", "lowerdir=/4:/3:/2:/1", "index=off"), 4, 2, "/m/root",
			overlayMount("workdir=/w", "upperdir=/u", "lowerdir=/4:/3:/m/root", "index=off"),
		},
		{
			"container whose IDs are mapped",
			overlayMount("uidmap=0:1000:65536", "gidmap=0:2000:65536", "workdir=/w", "upperdir=/u", "lowerdir=/2:/1", "index=off"), 2, 0, "/m/root",
			overlayMount("uidmap=0:1000:65536", "gidmap=0:2000:65536", "workdir=/w", "upperdir=/u", "lowerdir=/m/root", "index=off"),
		},
		{
			"view of one lazy layer",
			bindMount("/r/snapshots/1/fs", "ro", "rbind"), 1, 0, "/m/root",
			bindMount("/m/root", "ro", "rbind"),
		},
		{
			"view of three lazy layers",
			overlayMount("lowerdir=/3:/2:/1", "index=off", "userxattr"), 3, 0, "/m/root",
			bindMount("/m/root", "ro", "rbind"),
		},
		{
			"view of lazy layers with mapped IDs",
			overlayMount("uidmap=0:1000:65536", "gidmap=0:2000:65536", "lowerdir=/2:/1", "index=off"), 2, 0, "/m/root",
			bindMount("/m/root", "uidmap=0:1000:65536", "gidmap=0:2000:65536", "ro", "rbind"),
		},
		{
			"view of an ordinary layer on lazy ones",
			overlayMount("lowerdir=/3:/2:/1", "index=off"), 3, 1, "/m/root",
			overlayMount("lowerdir=/3:/m/root", "index=off"),
		},
		{
			"very many ordinary layers on a lazy one",
			overlayMount("workdir=/w", "upperdir=/u", "lowerdir="+strings.Join(long, ":")), 128, 127, "/m/root",
			overlayMount("workdir=/w", "upperdir=/u", "lowerdir="+strings.Join(long[:127], ":")+":/m/root"),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := fmt.Sprint(c.in)
			got, err := rewrite(c.in, c.parents, c.keep, c.dir)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
			if fmt.Sprint(c.in) != before {
				t.Errorf("changed what came in: %v", c.in)
			}
		})
	}
}

func TestRewriteRefusesWhatItDoesNotUnderstand(t *testing.T) {
	ok := overlayMount("workdir=/w", "upperdir=/u", "lowerdir=/2:/1")
	for _, c := range []struct {
		name          string
		in            []mount.Mount
		parents, keep int
		dir           string
	}{
		{"relative directory", ok, 2, 0, "m"},
		{"directory with a colon", ok, 2, 0, "/m:n"},
		{"directory with a comma", ok, 2, 0, "/m,n"},
		{"no mount", nil, 2, 0, "/m"},
		{"two mounts", append(overlayMount(), overlayMount()...), 2, 0, "/m"},
		{"nothing to replace", ok, 2, 2, "/m"},
		{"negative", ok, 2, -1, "/m"},
		{"other number of lower directories", ok, 3, 0, "/m"},
		{"no lower directories", overlayMount("upperdir=/u"), 1, 0, "/m"},
		{"bind mount for two", bindMount("/1", "ro"), 2, 0, "/m"},
		{"another type", []mount.Mount{{Type: "erofs", Options: []string{"lowerdir=/2:/1"}}}, 2, 0, "/m"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, err := rewrite(c.in, c.parents, c.keep, c.dir); err == nil {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestReadOnlyIsWhatContainerdTakesForStaged(t *testing.T) {
	in := bindMount("/r/snapshots/1/fs", "rw", "rbind")
	out := readOnly(in)
	if want := bindMount("/r/snapshots/1/fs", "ro", "rbind"); !reflect.DeepEqual(out, want) {
		t.Errorf("got %v, want %v", out, want)
	}
	if !out[0].ReadOnly() || in[0].ReadOnly() {
		t.Errorf("read-only: %v, was %v", out[0].ReadOnly(), in[0].ReadOnly())
	}
}
