package preheat

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
)

// The types of content.
const (
	TypeImage = "image"
	TypeFile  = "file"
)

// Bounds of a job's timeout.
const (
	DefaultTimeout = 30 * time.Minute
	MaxTimeout     = 24 * time.Hour
)

const (
	allPlatforms = "all"
	maxPlatforms = 32
)

// Request asks for a job. It is what POST /api/v1/preheats takes.
type Request struct {
	// Type is "image" or "file".
	Type string `json:"type"`
	// Ref of an image: HOST/REPO[:TAG|@DIGEST].
	Ref string `json:"ref,omitempty"`
	// URL of a file; for an image, instead of Ref, the URL of its manifest.
	URL string `json:"url,omitempty"`
	// SHA256 of a file, 64 hex digits, if it is known.
	SHA256 string `json:"sha256,omitempty"`
	// Platforms of an image, OS/ARCH[/VARIANT], or "all". Default: linux on the
	// supernode's own architecture. An image for a single platform is taken
	// whatever its platform is.
	Platforms []string `json:"platforms,omitempty"`
	// Scope is where the content is wanted.
	Scope Scope `json:"scope"`
	// Credentials for the origin. Default: the supernode's own.
	Credentials *Credentials `json:"credentials,omitempty"`
	// Timeout of the job, from its start; default DefaultTimeout.
	Timeout Duration `json:"timeout,omitempty"`
	// Accelerate has the supernode make the index of the image, too, by which
	// nodes mount it before it has arrived.
	Accelerate bool `json:"accelerate,omitempty"`
}

// Credentials for an origin: a username and password, a bearer token, or the
// verbatim value of an Authorization header.
type Credentials struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	Token         string `json:"token,omitempty"`
	Authorization string `json:"authorization,omitempty"`
}

// String says nothing of the content, so that no log does.
func (c Credentials) String() string { return "credentials(redacted)" }

// GoString is String.
func (c Credentials) GoString() string { return c.String() }

// credential checks and converts c. Basic authorization is taken apart, since
// a registry may want the password at its token server.
func (c *Credentials) credential() (origin.Credential, error) {
	if c == nil {
		return origin.Credential{}, nil
	}
	given := 0
	for _, set := range []bool{c.Username != "" || c.Password != "", c.Token != "", c.Authorization != ""} {
		if set {
			given++
		}
	}
	if given != 1 {
		return origin.Credential{}, invalid("credentials", "want either username and password, or token, or authorization")
	}
	for _, s := range []string{c.Username, c.Password, c.Token, c.Authorization} {
		if strings.ContainsAny(s, "\r\n\x00") {
			return origin.Credential{}, invalid("credentials", "contain a line break or a zero byte")
		}
	}
	if c.Token != "" {
		return origin.Credential{Authorization: "Bearer " + c.Token}, nil
	}
	scheme, value, _ := strings.Cut(c.Authorization, " ")
	if strings.EqualFold(scheme, "Basic") {
		if plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value)); err == nil {
			if user, password, ok := strings.Cut(string(plain), ":"); ok {
				return origin.Credential{Username: user, Password: password}, nil
			}
		}
	}
	return origin.Credential{Authorization: c.Authorization, Username: c.Username, Password: c.Password}, nil
}

// Duration is a time.Duration whose JSON form is "1m30s"; a number of seconds
// is read as well.
type Duration time.Duration

// MarshalJSON writes the form of time.Duration.String.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON reads "1m30s" or 90. Errors are *InvalidError.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		s = string(b) + "s"
	}
	if s == "" { // also null
		*d = 0
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return invalid("timeout", `want a duration such as "30m", or a number of seconds`)
	}
	*d = Duration(v)
	return nil
}

// subject is what a checked request is about.
type subject struct {
	image     *imageRef      // of type image
	platforms []*v1.Platform // of an image; nil: all
	url       string         // of type file
	id        task.ID        // of a file whose digest is known
}

// check turns a request into its subject and credential. Errors are
// *InvalidError.
func (r *Request) check(upstream Upstream) (s subject, cred origin.Credential, err error) {
	if cred, err = r.Credentials.credential(); err != nil {
		return s, cred, err
	}
	if d := time.Duration(r.Timeout); d < 0 || d > MaxTimeout || d > 0 && d < time.Second {
		return s, cred, invalid("timeout", "is %s, want 1s to %s", d, MaxTimeout)
	}
	switch r.Type {
	case TypeImage:
		s, err = r.checkImage(upstream)
	case TypeFile:
		s, err = r.checkFile()
	case "":
		err = invalid("type", "is missing: want image or file")
	default:
		err = invalid("type", "%.100q is not supported: want image or file", r.Type)
	}
	return s, cred, err
}

func (r *Request) checkImage(upstream Upstream) (s subject, err error) {
	switch {
	case (r.Ref == "") == (r.URL == ""):
		return s, invalid("ref", "an image needs either ref (HOST/REPO[:TAG|@DIGEST]) or url (of its manifest)")
	case r.SHA256 != "":
		return s, invalid("sha256", "is for files; name an image by REPO@sha256:…")
	case r.Ref != "":
		s.image, err = parseRef(r.Ref, upstream)
	default:
		s.image, err = parseManifestURL(r.URL, upstream)
	}
	if err == nil {
		s.platforms, err = parsePlatforms(r.Platforms)
	}
	return s, err
}

func parsePlatforms(names []string) ([]*v1.Platform, error) {
	if len(names) == 0 {
		return []*v1.Platform{{OS: "linux", Architecture: runtime.GOARCH}}, nil
	}
	if slices.Contains(names, allPlatforms) {
		if len(names) > 1 {
			return nil, invalid("platforms", "%q does not go with others", allPlatforms)
		}
		return nil, nil
	}
	if len(names) > maxPlatforms {
		return nil, invalid("platforms", "are %d, at most %d", len(names), maxPlatforms)
	}
	var platforms []*v1.Platform
	for _, name := range names {
		p, err := v1.ParsePlatform(name)
		if err != nil || p.OS == "" || p.Architecture == "" {
			return nil, invalid("platforms", `%.100q is none: want OS/ARCH[/VARIANT] such as "linux/amd64", or "all"`, name)
		}
		platforms = append(platforms, p)
	}
	return platforms, nil
}

func (r *Request) checkFile() (s subject, err error) {
	switch {
	case r.URL == "":
		return s, invalid("url", "is missing: a file needs its http or https URL")
	case r.Ref != "":
		return s, invalid("ref", "is for images; a file needs url")
	case len(r.Platforms) > 0:
		return s, invalid("platforms", "are for images")
	case r.Accelerate:
		return s, invalid("accelerate", "is for images")
	}
	if _, err := parseURL(r.URL); err != nil {
		return s, err
	}
	if r.SHA256 != "" {
		d, err := task.ParseDigest(strings.ToLower(strings.TrimPrefix(r.SHA256, "sha256:")))
		if err != nil {
			return s, invalid("sha256", "want 64 hex digits")
		}
		s.id = task.BlobID(d)
	}
	s.url = r.URL
	return s, nil
}

// parseURL accepts what package origin does.
func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, invalid("url", "is malformed")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, invalid("url", "has scheme %.20q, want http or https", u.Scheme)
	case u.Hostname() == "":
		return nil, invalid("url", "has no host")
	case u.User != nil:
		return nil, invalid("url", "contains a username or password: put them into credentials")
	case u.Fragment != "":
		return nil, invalid("url", "has a fragment (#…)")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return nil, invalid("url", "has port %.20q", p)
		}
	}
	return u, nil
}
