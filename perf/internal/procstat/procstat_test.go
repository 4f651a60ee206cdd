package procstat

import (
	"os"
	"testing"
)

func TestParse(t *testing.T) {
	const stat = "77 (a) b (c) S 1 77 77 0 -1 4194560 901 0 3 0 412 88 7 9 20 0 12 0 5551212 1871872 2048 18446744073709551615\n"
	const status = "Name:\ta) b\nVmPeak:\t  999 kB\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\nThreads:\t12\n"
	var got Stat
	if err := got.parseStat([]byte(stat)); err != nil {
		t.Fatal(err)
	}
	if err := got.parseStatus([]byte(status)); err != nil {
		t.Fatal(err)
	}
	want := Stat{CPUSeconds: 5, SystemSeconds: 0.88, RSS: 1 << 20, PeakRSS: 2 << 20, StartTicks: 5551212}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{"", "77 name", "77 (name) S 1 2 3", "77 (n) S 1 2 3 4 5 6 7 8 9 10 11 x 13 14 15 16 17 18 19 20 21"} {
		if err := new(Stat).parseStat([]byte(text)); err == nil {
			t.Errorf("stat %q was accepted", text)
		}
	}
	if err := new(Stat).parseStatus([]byte("VmHWM: many kB\n")); err == nil {
		t.Error("status without a number was accepted")
	}
}

func TestReadSelf(t *testing.T) {
	st, err := Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if st.RSS <= 0 || st.PeakRSS <= 0 || st.StartTicks == 0 {
		t.Errorf("got %+v", st)
	}
	if _, err := Read(-1); err == nil {
		t.Error("process -1 was read")
	}
}
