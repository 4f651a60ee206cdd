package fanotify

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestRaiseLimits(t *testing.T) {
	dir := t.TempDir()
	write := func(name, value string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("max_user_groups", "128\n")
	write("max_user_marks", "205039\n")
	got, err := raiseLimits(dir)
	want := []Change{{Name: "fs.fanotify.max_user_groups", Old: 128, New: 65536}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if n, err := readLimit(filepath.Join(dir, "max_user_groups")); n != 65536 || err != nil {
		t.Errorf("limit is %d, %v", n, err)
	}
	if got, err := raiseLimits(dir); got != nil || err != nil {
		t.Errorf("second call: %v, %v", got, err)
	}
	write("max_user_marks", "many")
	if _, err := raiseLimits(dir); err == nil {
		t.Error("no error for a limit that is no number")
	}
}
