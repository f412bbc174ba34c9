// Starts a site's page from the modules that it carries, so that it works from a file, where browsers load no modules.
// Each comes after those that it imports, whose addresses are put in place of their names.

const addresses = {};
for (const place of document.querySelectorAll("script[data-module]")) {
  const code = place.textContent.replace(/from "\.\/([\w.-]+)"/g, (_, name) => `from "${addresses[name]}"`);
  addresses[place.dataset.module] = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
}
import(addresses["page.js"]).catch((error) => {
  document.getElementById("status").textContent = `This browser cannot run the page: ${error.message}`;
});
