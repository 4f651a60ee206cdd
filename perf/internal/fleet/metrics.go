package fleet

import (
	"fmt"
	"strconv"
	"strings"
)

// Metrics are samples in the Prometheus text format, by name with labels as
// they were written: `damselfly_piece_download_bytes_total{from="peer"}`.
type Metrics map[string]float64

// ParseMetrics reads the Prometheus text format. Timestamps are ignored.
func ParseMetrics(text string) (Metrics, error) {
	m := Metrics{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		// Label values may hold spaces, so the value is looked for after them.
		end := strings.LastIndexByte(line, '}') + 1
		if end == 0 {
			end = strings.IndexByte(line, ' ')
		}
		fields := strings.Fields(line[max(end, 0):])
		if end <= 0 || len(fields) == 0 {
			return nil, fmt.Errorf("sample %q has no value", line)
		}
		v, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			return nil, fmt.Errorf("sample %q: %w", line, err)
		}
		m[line[:end]] = v
	}
	return m, nil
}

// Sum adds up all samples of a metric that counts, whatever their labels.
func (m Metrics) Sum(name string) int64 { return int64(m.Total(name)) }

// Total adds up all samples of a metric, whatever their labels.
func (m Metrics) Total(name string) float64 {
	var sum float64
	for key, v := range m {
		if key == name || strings.HasPrefix(key, name+"{") {
			sum += v
		}
	}
	return sum
}

// By adds up the samples of a metric for each value of one of its labels.
func (m Metrics) By(name, label string) map[string]int64 {
	sums := map[string]int64{}
	for key, v := range m {
		labels, ok := strings.CutPrefix(key, name+"{")
		if !ok {
			continue
		}
		if _, rest, ok := strings.Cut(","+labels, ","+label+`="`); ok {
			value, _, _ := strings.Cut(rest, `"`)
			sums[value] += int64(v)
		}
	}
	return sums
}
