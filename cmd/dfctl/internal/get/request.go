package get

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/task"
)

// stdout is the FILE that means standard output.
const stdout = "-"

// flags are the command line before it is checked.
type flags struct {
	file     string
	sha256   string
	priority string
	headers  []string
	timeout  time.Duration
	format   output.Format
	quiet    bool
}

// request is what to download, checked.
type request struct {
	source   *apiv1.Source
	priority apiv1.Priority
	file     string
	digest   string // SHA-256 in hex, "" if any content will do
	name     string // the URL for messages: without its query, which may hold a signature
	quiet    bool
}

var priorities = map[string]apiv1.Priority{
	"demand":   apiv1.Priority_PRIORITY_DEMAND,
	"prefetch": apiv1.Priority_PRIORITY_PREFETCH,
	"preheat":  apiv1.Priority_PRIORITY_PREHEAT,
}

// request checks the command line. All its errors are wrong use.
func (f *flags) request(rawURL string) (*request, error) {
	source, u, err := parseURL(rawURL)
	if err != nil {
		return nil, err
	}
	req := &request{source: source, file: f.file, name: display(u), quiet: f.quiet || f.format == output.JSON}
	if err := addHeaders(source, f.headers); err != nil {
		return nil, err
	}
	if f.sha256 != "" {
		req.digest = strings.ToLower(strings.TrimPrefix(f.sha256, "sha256:"))
		digest, err := task.ParseDigest(req.digest)
		if err != nil {
			return nil, fmt.Errorf("--sha256: %w", err)
		}
		source.TaskId = string(task.BlobID(digest))
	}
	var known bool
	if req.priority, known = priorities[f.priority]; !known {
		return nil, fmt.Errorf("--priority %q: use demand, prefetch or preheat", f.priority)
	}
	if f.timeout < 0 {
		return nil, fmt.Errorf("--timeout %v: use a positive duration such as 10m", f.timeout)
	}
	if f.file == stdout && f.format == output.JSON {
		return nil, errors.New("-O - and -o json both want standard output: use a file")
	}
	if req.file == "" {
		if req.file, err = fileName(u); err != nil {
			return nil, err
		}
	}
	if strings.HasSuffix(req.file, "/") {
		return nil, fmt.Errorf("-O %q names a directory: use a file name", req.file)
	}
	return req, nil
}

// parseURL takes user name and password out of the URL, so that they are
// treated as the secrets they are.
func parseURL(s string) (*apiv1.Source, *url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		// The parse error repeats the whole URL.
		return nil, nil, errors.New("the URL cannot be parsed: use http://HOST/PATH or https://HOST/PATH")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, nil, fmt.Errorf("URL %q: use http://HOST/PATH or https://HOST/PATH", display(u))
	}
	credential := &apiv1.Credential{}
	if u.User != nil {
		password, _ := u.User.Password()
		credential.Username, credential.Password = u.User.Username(), password
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	return &apiv1.Source{Url: u.String(), Credential: credential}, u, nil
}

// display returns the URL without what may be secret.
func display(u *url.URL) string {
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath, Opaque: u.Opaque}
	s := output.Clean(shown.String())
	if u.RawQuery != "" {
		s += "?…"
	}
	return s
}

// headerName is a token of RFC 9110.
var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// addHeaders reads "Key: value" lines. Authorization is a credential; headers
// that dfdaemon sets itself are refused.
func addHeaders(source *apiv1.Source, lines []string) error {
	for _, line := range lines {
		name, value, found := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if !found || !headerName.MatchString(name) || strings.ContainsFunc(value, isControl) {
			// The value stays out of the message: it may be a token.
			return fmt.Errorf("--header %q: use 'Name: value'", output.Clean(name))
		}
		switch lower := strings.ToLower(name); {
		case lower == "authorization":
			source.Credential = &apiv1.Credential{Authorization: value}
		case slices.Contains([]string{"host", "range", "content-length", "connection", "transfer-encoding"}, lower):
			return fmt.Errorf("--header %s: dfdaemon sets this header itself", name)
		default:
			source.Headers = append(source.Headers, &apiv1.Header{Name: name, Value: value})
		}
	}
	return nil
}

// fileName derives the name of the file from the URL's last path element.
func fileName(u *url.URL) (string, error) {
	// The path is unescaped already, so that %2F has become a separator and
	// cannot lead out of the current directory.
	name := path.Base(u.Path)
	if strings.HasSuffix(u.Path, "/") || name == "." || name == ".." || name == "/" {
		return "", fmt.Errorf("URL %q does not end in a file name: use -O FILE", display(u))
	}
	if output.Clean(name) != name {
		return "", fmt.Errorf("the file name in URL %q is not printable: use -O FILE", display(u))
	}
	return name, nil
}
